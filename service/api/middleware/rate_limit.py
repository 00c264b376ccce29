"""How often each key may ask."""

import math

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.errors import error_response
from service.errors import RateLimitedError
from service.limits import Buckets


class RateLimitMiddleware:
    """Answers 429 to a key that asks too often, before its body is read.

    Paths that need no key have no limit. A request that is refused takes nothing.

    Args:
        per_second: requests of one key, on average.
        buckets: count them.
    """

    def __init__(self, app: ASGIApp, *, per_second: float, buckets: Buckets) -> None:
        self.app = app
        self._per_second = per_second
        self._buckets = buckets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on, or answers 429."""
        key = scope.get("state", {}).get("key")
        wait = 0.0 if key is None else await self._buckets.take(key)
        if wait == 0:
            await self.app(scope, receive, send)
            return
        seconds = math.ceil(wait)
        error = RateLimitedError(
            f"this key may make {self._per_second:g} requests per second: try again in {seconds} s",
            retry_after=seconds,
        )
        await error_response(error, scope)(scope, receive, send)
