"""The time of day, as far as it can be believed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

BELIEVED_AFTER_SECONDS = 86_400.0
"""A clock that was set is believed once it has gone on from there for so long."""

_SLACK_SECONDS = 60.0  # which corrections of a running clock stay within

_log = structlog.get_logger("dalorra.feedback")


def _since_boot() -> float:
    """Seconds, those of a machine that sleeps included where the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class SteadyClock:
    """Wall time that does not follow a jump, forward or back, until the jump has lasted a day.

    What is deleted by its age would be gone at once where a machine's clock is set to a wrong date.
    Any thread may ask.

    Args:
        remembered: what `for_deleting` said last, in an earlier process; None: nothing is known.
        wall: the time of day in seconds, which may jump.
        steady: seconds from any start, which cannot.
    """

    def __init__(
        self,
        remembered: float | None = None,
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = _since_boot,
    ) -> None:
        self._wall, self._steady = wall, steady
        self._lock = threading.Lock()
        now, started = wall(), steady()
        self._offset = max(now, remembered or now) - started  # it cannot be earlier than it was
        self._doubted: tuple[float, float] | None = None  # another offset, and since when
        gap = now - remembered if remembered else 0.0
        self._gap = gap if gap > BELIEVED_AFTER_SECONDS else 0.0
        self._gap_until = started + BELIEVED_AFTER_SECONDS

    def now(self) -> float:
        """The time of day in seconds."""
        with self._lock:
            steady = self._steady()
            offset = self._wall() - steady
            if self._is_like(offset, self._offset):
                self._offset, self._doubted = offset, None
            elif self._doubted is None or not self._is_like(offset, self._doubted[0]):
                self._doubted = offset, steady
                _log.warning(
                    "clock_jumped",
                    seconds=round(offset - self._offset),
                    believed_in_seconds=BELIEVED_AFTER_SECONDS,
                )
            elif steady - self._doubted[1] >= BELIEVED_AFTER_SECONDS:
                self._offset, self._doubted = offset, None
            return steady + self._offset

    def for_deleting(self) -> float:
        """The same, but after a long pause as if there had been none: it may have been a jump."""
        return self.now() - (self._gap if self._steady() < self._gap_until else 0.0)

    @staticmethod
    def _is_like(one: float, other: float) -> bool:
        return abs(one - other) <= _SLACK_SECONDS
