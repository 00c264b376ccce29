"""Bearer keys: every path needs one, apart from a short list."""

import hashlib
import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api import page
from service.api.errors import error_response
from service.errors import UnauthorizedError

OPEN_PATHS = page.PATHS | {
    "/health/live",
    "/health/ready",
    "/v2/health/live",
    "/v2/health/ready",
    "/metrics",
}
"""The page, and what probes and Prometheus read without a key."""


class AuthMiddleware:
    """Refuses requests without a known key. Only hashes of the keys are kept.

    Comparing hashes of equal length, each to its end, tells an attacker nothing by its time.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self.app = app
        self._known = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on, or answers 401."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._knows(scope):
            await self.app(scope, receive, send)
            return
        error = UnauthorizedError("send a known key in the header Authorization: Bearer …")
        await error_response(error, scope)(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        digest = _digest(key.strip().encode())
        matches = [hmac.compare_digest(digest, known) for known in self._known]
        return scheme.lower() == "bearer" and any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
