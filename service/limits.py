"""How often each key may ask: counted by each replica, or in Redis for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from dalorra.errors import ConfigError
from service.keys import owner_name

SCHEMES = ("redis://", "rediss://", "unix://")

_TIMEOUT_SECONDS = 0.25  # which Redis may take
_PAUSE_SECONDS = 1.0  # after it took longer, before it is asked again

_log = structlog.get_logger("dalorra.limits")


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


class Buckets(Protocol):
    """A bucket for each key."""

    async def take(self, key: bytes) -> float:
        """See `TokenBucket.take`.

        Args:
            key: digest of a known one.
        """

    async def close(self) -> None:
        """Lets go of what is shared."""


class OwnBuckets:
    """Those of one replica.

    Args:
        per_second, burst: pace and size.
        clock: seconds.
    """

    def __init__(
        self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._buckets: dict[bytes, TokenBucket] = {}  # of known keys only, which are few

    async def take(self, key: bytes) -> float:
        """See `Buckets`."""
        now = self._clock()
        if key not in self._buckets:
            self._buckets[key] = TokenBucket(self._per_second, self._burst, self._burst, now)
        return self._buckets[key].take(now)

    async def close(self) -> None:
        """There is nothing to let go of."""


# `TokenBucket.take` by the clock of Redis.
_TAKE = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local per_second, size = tonumber(ARGV[1]), tonumber(ARGV[2])
local kept = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens, at = tonumber(kept[1]) or size, tonumber(kept[2]) or now
tokens = math.min(size, tokens + math.max(now - at, 0) * per_second)
local wait = 0
if tokens < 1 then wait = (1 - tokens) / per_second else tokens = tokens - 1 end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.17g', tokens),
           'at', string.format('%.17g', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(1000 * size / per_second) + 1000)
return string.format('%.17g', wait)
"""


class SharedBuckets:
    """Those of all replicas, in Redis. While it does not answer, each replica counts by itself.

    Args:
        url: of a Redis database.
        per_second, burst: pace and size.

    Raises:
        ConfigError: the address is none, or what it needs is not installed.
    """

    def __init__(self, url: str, per_second: float, burst: int) -> None:
        try:
            import redis.asyncio as redis
        except ImportError as error:
            raise ConfigError(
                "limits_url needs redis: pip install 'dalorra-service[shared]'"
            ) from error
        try:
            self._redis = redis.Redis.from_url(
                url, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS
            )
        except ValueError as error:
            raise ConfigError(f"limits_url is no address of a Redis database: {error}") from None
        self._unanswered = (redis.RedisError, OSError)
        self._take = self._redis.register_script(_TAKE)
        self._pace = (per_second, burst)
        self._own = OwnBuckets(per_second, burst)
        self._away = False
        self._ask_after = 0.0

    async def take(self, key: bytes) -> float:
        """See `Buckets`."""
        if time.monotonic() >= self._ask_after:
            try:
                name = f"dalorra:rate:{owner_name(key)}"
                wait = float(await self._take(keys=[name], args=self._pace))
            except self._unanswered as error:
                self._ask_after = time.monotonic() + _PAUSE_SECONDS
                self._tell(away=True, why=str(error))
            else:
                self._tell(away=False)
                return wait
        return await self._own.take(key)

    def _tell(self, *, away: bool, why: str | None = None) -> None:
        if away and not self._away:
            _log.warning("limits_not_shared", error=why)
        if self._away and not away:
            _log.info("limits_shared_again")
        self._away = away

    async def close(self) -> None:
        """Closes the connections."""
        await self._redis.aclose()


def buckets_for(url: str | None, per_second: float, burst: int) -> Buckets:
    """Buckets in Redis where there is an address, else a replica's own."""
    if url is None:
        return OwnBuckets(per_second, burst)
    return SharedBuckets(url, per_second, burst)
