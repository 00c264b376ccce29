"""Counts, times and logs each request once, when it ends; catches what nobody else did."""

import asyncio
import re
import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import error_response
from service.api.problems import Problem
from service.errors import DrainingError
from service.keys import fingerprint
from service.telemetry import Outcome, Telemetry

_log = structlog.get_logger("dalorra.access")
_PREDICTION_PATH = re.compile(r"/predict(/batch)?|/v1/(systemone|decisions)|/v2/models/[^/]+/infer")


class AccessMiddleware:
    """One line and one count per request.

    Only predictions are counted, and only they are logged at info: probes and scrapes would
    drown them.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self.app = app
        self.telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Counts, times and logs."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        counted = _PREDICTION_PATH.fullmatch(scope["path"]) is not None
        status = 0

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.perf_counter()
        if counted:
            self.telemetry.request_started()
        try:
            await self.app(scope, receive, send_and_see)
        except asyncio.CancelledError:
            if not scope["app"].state.lifecycle.ending:
                raise
            if not status:
                ending = DrainingError("the server is shutting down: try again")
                await error_response(ending, scope)(scope, receive, send_and_see)
        except Exception as error:
            response = error_response(error, scope)
            if status:  # the answer has begun: all that is left is to close the connection
                raise
            await response(scope, receive, send_and_see)
        finally:
            self._finish(scope, status, time.perf_counter() - started, counted=counted)

    def _finish(self, scope: Scope, status: int, seconds: float, *, counted: bool) -> None:
        state = scope.setdefault("state", {})
        state["status"] = status
        problem: Problem | None = state.get("problem")
        if problem is not None:
            outcome = problem.outcome
        else:  # no status: the server cancelled the request before it was answered
            outcome = Outcome.OK if status else Outcome.CANCELLED
        if counted:
            error_type = problem.error_type if problem else None
            self.telemetry.request_finished(outcome, error_type, seconds)
        log = _log.info if counted else _log.debug
        log(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=status,
            outcome=str(outcome),
            total_ms=round(1e3 * seconds, 3),
            **({"key": fingerprint(state["key"])} if "key" in state else {}),
            **({"error_type": problem.error_type} if problem else {}),
            **state.get("facts", {}),
        )
