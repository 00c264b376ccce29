"""When a refused request is sent again."""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

RETRIED = frozenset({429, 503})
"""Refused, or lost with a replica that died. Nothing else is sent twice."""


@dataclass(frozen=True, slots=True)
class Retries:
    """How often and how patiently a request is sent again after 429 and 503.

    A `Retry-After` is waited out in full, and up to a quarter more, so that clients which were
    refused together do not come back together. Without one the wait is random up to
    `backoff · 2ⁿ` ("full jitter").

    Attributes:
        attempts: requests in all; 1 never retries.
        longest_wait: seconds; when the server asks for more, the error is raised at once.
        backoff: seconds, the longest first wait without a `Retry-After`.
    """

    attempts: int = 4
    longest_wait: float = 30.0
    backoff: float = 0.5

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.longest_wait < 0 or self.backoff < 0:
            raise ValueError("attempts must be at least 1, and the times not negative")

    def wait(
        self,
        attempt: int,
        status: int,
        retry_after: float | None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> float | None:
        """Seconds until the next attempt, or None when the error is to be raised.

        Args:
            attempt: how many were made.
            status: what the last one was answered with.
            retry_after: seconds that the server asked for.
            uniform: a random number between two.
        """
        if status not in RETRIED or attempt >= self.attempts:
            return None
        if retry_after is None:
            return uniform(0.0, min(self.longest_wait, self.backoff * 2.0 ** (attempt - 1)))
        if retry_after > self.longest_wait:
            return None
        return retry_after + uniform(0.0, retry_after / 4)


def parse_retry_after(header: str | None) -> float | None:
    """Seconds from a `Retry-After`, which has either those or a date (RFC 9110, 10.2.3)."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None
