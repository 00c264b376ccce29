"""How fast the model works, and how long it will take for what waits."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median_low
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dalorra.forward.batches import Batching

_RECENT: Final = 8
"""Batches that an estimate rests on."""

_TRUSTED: Final = 10.0
"""Seconds of rest after which only a batch can tell how fast the model is by now."""

_LEAST: Final = 4.0
"""Prices of a batch that its rows are worth at least, however slow the machine is."""

_OVERDUE: Final = 1.5
"""A batch that takes longer than expected is given half as long again."""


@dataclass(frozen=True, slots=True)
class Speed:
    """An estimate, made at one moment.

    Attributes:
        per_row: seconds; 0 before anything is known.
        price: of a batch itself, in rows.
        batch_rows: rows that go to the model at once, at most.
    """

    per_row: float
    price: float
    batch_rows: float

    def seconds(self, rows: float) -> float:
        """Until so many rows are computed, in as few batches as they fit in."""
        if not rows:
            return 0.0
        return self.per_row * (rows + self.price * max(rows / self.batch_rows, 1.0))

    def rows(self, seconds: float) -> float:
        """Rows of the largest batch that takes no longer than this."""
        if not self.per_row:
            return self.batch_rows
        return min(self.batch_rows, max(seconds / self.per_row - self.price, 1.0))


class Pace:
    """Owner of what is known about speed: recent batches, and the one that runs.

    Three estimates. The typical one is the median of recent batches: a hiccup does not change it,
    so nobody loses a place for one. The latest is the slower of the last two, for the next batch.
    The careful one is the slowest of all, which covers their spread, and the one that runs, for as
    long as it has taken: a slow-down is known before the first slow batch ends. To be too careful
    costs little: what is refused for it finds a place a few batches later.

    Args:
        batch_seconds: what a batch may take; a slower machine gets smaller batches.
    """

    def __init__(self, batch_seconds: float) -> None:
        self._batch_seconds = batch_seconds
        self._recent: deque[float] = deque(maxlen=_RECENT)  # seconds per row
        self._price = 0.0
        self._budget = math.inf
        self._work = 0.0  # rows of the batch that runs, and its price; 0: none runs
        self._began_at = 0.0
        self._ended_at = 0.0

    def begin(self, rows: int, batching: Batching, now: float) -> None:
        """A batch goes to the model."""
        self._price, self._budget = batching.price, batching.budget
        self._work, self._began_at = rows + self._price, now

    def end(self, now: float) -> None:
        """It has come back."""
        self._recent.append((now - self._began_at) / self._work)
        self._work, self._ended_at = 0.0, now

    def typical(self, now: float) -> Speed:
        """What is to be expected; nothing is, after a long rest."""
        known = self._recent and (self._work or now - self._ended_at < _TRUSTED)
        return self._speed(median_low(self._recent) if known else 0.0)

    def latest(self) -> Speed:
        """What the next batch hardly exceeds, unless something changes."""
        return self._speed(max(list(self._recent)[-2:], default=0.0))

    def careful(self, now: float) -> Speed:
        """What is hardly ever exceeded."""
        slowest = max(self._recent, default=0.0)
        if self._work:
            slowest = max(slowest, _OVERDUE * (now - self._began_at) / self._work)
        return self._speed(slowest)

    def rest(self, now: float) -> float:
        """Seconds until the batch that runs is done, carefully; 0 where none runs."""
        if not self._work:
            return 0.0
        return max(0.0, self._began_at + self.careful(now).per_row * self._work - now)

    def _speed(self, per_row: float) -> Speed:
        least = max(_LEAST * self._price, 1.0)
        affordable = self._batch_seconds / per_row - self._price if per_row else math.inf
        return Speed(per_row, self._price, min(self._budget, max(affordable, least)))
