"""How often each key may ask."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.errors import error_response
from service.errors import RateLimitedError


@dataclass(slots=True)
class TokenBucket:
    """A request takes a token; tokens come back at a steady pace until the bucket is full.

    Attributes:
        per_second: tokens that come back.
        size: tokens at most.
        tokens: tokens that were left at `at`.
        at: when that was, in seconds.
    """

    per_second: float
    size: float
    tokens: float
    at: float

    def take(self, now: float) -> float:
        """Takes a token and returns 0, or takes none and returns the seconds until there is one."""
        self.tokens = min(self.size, self.tokens + (now - self.at) * self.per_second)
        self.at = now
        if self.tokens < 1:
            return (1 - self.tokens) / self.per_second
        self.tokens -= 1
        return 0.0


class RateLimitMiddleware:
    """Answers 429 to a key that asks too often, before its body is read.

    Paths that need no key have no limit. A request that is refused takes nothing.

    Args:
        per_second: requests of one key, on average.
        burst: requests of one key at once, after a pause.
        clock: seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        per_second: float,
        burst: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app = app
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._buckets: dict[bytes, TokenBucket] = {}  # of known keys only, which are few

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on, or answers 429."""
        key = scope.get("state", {}).get("key")
        wait = self._bucket(key).take(self._clock()) if key is not None else 0.0
        if wait == 0:
            await self.app(scope, receive, send)
            return
        seconds = math.ceil(wait)
        error = RateLimitedError(
            f"this key may make {self._per_second:g} requests per second: try again in {seconds} s",
            retry_after=seconds,
        )
        await error_response(error, scope)(scope, receive, send)

    def _bucket(self, key: bytes) -> TokenBucket:
        if key not in self._buckets:
            self._buckets[key] = TokenBucket(
                self._per_second, self._burst, self._burst, self._clock()
            )
        return self._buckets[key]
