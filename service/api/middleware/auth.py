"""Bearer keys: every path needs one, apart from a short list."""

from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api import page
from service.api.callers import bearer_key
from service.api.errors import error_response
from service.errors import UnauthorizedError
from service.keys import matching

PROBE_PATHS = frozenset(
    {"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/metrics"}
)
"""What probes and Prometheus read: without a key, and where there is no room for others."""

OPEN_PATHS = page.PATHS | PROBE_PATHS
"""What needs no key: that, and the page."""


class AuthMiddleware:
    """Refuses requests without a known key, and leaves the digest of a known one in the state.

    Args:
        keys: SHA-256 digests of the known keys.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[bytes]) -> None:
        self.app = app
        self._known = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on, or answers 401."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        key = bearer_key(scope)
        found = None if key is None else matching(key, self._known)
        if found is None:
            error = UnauthorizedError("send a known key in the header Authorization: Bearer …")
            await error_response(error, scope)(scope, receive, send)
            return
        scope.setdefault("state", {})["key"] = found
        await self.app(scope, receive, send)
