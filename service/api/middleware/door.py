"""What is seen at the door, from the head of a request alone: who it is for, and where it ends."""

from collections.abc import Callable, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.errors import error_response
from service.api.middleware.auth import PROBE_PATHS
from service.errors import (
    LONGEST_ECHO,
    BadRequestError,
    BusyError,
    ServiceError,
    UnknownHostError,
)

GUEST = "guest"
"""In a request's state where its connection is one beyond the limit."""

Check = Callable[[Scope], ServiceError | None]


class DoorMiddleware:
    """Turns away what one of the checks finds, and closes its connection."""

    def __init__(self, app: ASGIApp, checks: Sequence[Check]) -> None:
        self.app = app
        self._checks = checks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on, or refuses."""
        if scope["type"] == "http":
            for check in self._checks:
                if (error := check(scope)) is not None:
                    response = error_response(error, scope)
                    response.headers["Connection"] = "close"
                    await response(scope, receive, send)
                    return
        await self.app(scope, receive, send)


def has_room(scope: Scope) -> ServiceError | None:
    """There is room, or it is a probe: a guest gets no other answer."""
    if GUEST not in scope.get("state", {}) or scope["path"] in PROBE_PATHS:
        return None
    return BusyError("the server has as many connections as it takes: try again in a moment")


def has_one_length(scope: Scope) -> ServiceError | None:
    """It says once how long it is: else what a proxy takes for its body could be a request.

    RFC 9112, section 6.1.
    """
    headers = Headers(scope=scope)
    if "transfer-encoding" in headers and "content-length" in headers:
        return BadRequestError("send Content-Length or Transfer-Encoding, not both")
    return None


def is_for(hosts: Sequence[str]) -> Check:
    """A check that `Host` is one of these names, whatever its port.

    A web page can have its own name point to this machine (DNS rebinding); its browser then takes
    the server for the page's own, but the name in `Host` stays the page's.
    """
    known = {host.lower() for host in hosts}

    def check(scope: Scope) -> ServiceError | None:
        host = Headers(scope=scope).get("host", "")
        if _without_port(host).lower() in known:
            return None
        return UnknownHostError(
            f"this server is not {host[:LONGEST_ECHO]!r}: ask for {', '.join(sorted(known))}, or "
            "have allowed_hosts name it"
        )

    return check


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
