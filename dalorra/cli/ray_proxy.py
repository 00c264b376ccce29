"""What Ray Serve's proxy says where no replica can: our errors in place of Ray's own.

A replica that is killed takes with it the requests that it has in hand, and Ray answers those with
a bare 500, which no client may send again. Where Ray's processes have

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=dalorra.cli.ray_proxy:middlewares

in their environment, they get a 503 in the documented form that says when to come back.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import error_response
from service.api.middleware.request_id import HEADER, id_of
from service.errors import UnavailableError

_OF_RAY = "/-/"
"""Paths that begin so are the proxy's own."""


def middlewares() -> list[Middleware]:
    """Called by Ray in each of its proxies."""
    return [Middleware(NoReplicaMiddleware)]


class NoReplicaMiddleware:
    """Answers what no replica answered: it died, or there was none in time."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on the answer of a replica; without one, says so."""
        if scope["type"] != "http" or scope["path"].startswith(_OF_RAY):
            await self.app(scope, receive, send)
            return
        head: Message | None = None
        answered = False

        async def send_of_replica(message: Message) -> None:
            nonlocal head, answered
            if message["type"] == "http.response.start":
                head = None if _is_rays(message) else _with_one_id(message)
            elif head is not None:
                if not answered:
                    await send(head)  # not before its body: in between, the replica may die
                answered = True
                await send(message)

        await self.app(scope, receive, send_of_replica)
        if not answered:
            request_id = scope.setdefault("state", {})["request_id"] = id_of(scope)
            lost = UnavailableError("the replica with this request is gone: try again", 1)
            response = error_response(lost, scope)
            response.headers[HEADER] = request_id
            await response(scope, receive, send)


def _with_one_id(start: Message) -> Message:
    """Without what Ray adds to the id that the replica gave."""
    headers = MutableHeaders(raw=list(start["headers"]))
    if (request_id := headers.get(HEADER)) is not None:
        headers[HEADER] = request_id
    return {**start, "headers": headers.raw}


def _is_rays(start: Message) -> bool:
    """Whether it begins Ray's own words about a deadline, or about replicas that it lacks."""
    kind = Headers(raw=start["headers"]).get("content-type", "")
    return start["status"] in (408, 503) and kind.startswith("text/plain")
