"""The trace that a request belongs to: into the log lines, and, where asked for, into spans."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from service.api.middleware.auth import OPEN_PATHS

if TYPE_CHECKING:
    from service.tracing import Tracing

# https://www.w3.org/TR/trace-context, section 3.2: version, trace, caller's span, flags; a version
# after 00 may append fields.
_TRACEPARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?"
)


class TraceMiddleware:
    """Binds `trace_id` and the caller's `parent_id` to every log line of a request.

    Args:
        tracing: makes a span of the request, whose `span_id` is then bound, too.
    """

    def __init__(self, app: ASGIApp, tracing: Tracing | None = None) -> None:
        self.app = app
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Places the request in its trace."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        bound = trace_of(headers.get("traceparent", ""))
        if self.tracing is None or scope["path"] in OPEN_PATHS:  # probes would drown the traces
            with bound_contextvars(**bound):
                await self.app(scope, receive, send)
            return
        with (
            self.tracing.request(scope, headers) as ids,
            bound_contextvars(**{**bound, **ids}),
        ):
            await self.app(scope, receive, send)


def trace_of(traceparent: str) -> dict[str, str]:
    """`trace_id` and `parent_id` of a traceparent header; nothing when it is not a valid one."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None or (found[1] == "00" and found[4]):
        return {}
    return {"trace_id": found[2], "parent_id": found[3]}
