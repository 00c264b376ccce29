"""Places in the queue, counted in requests and in packed rows, and how long until one is free.

A place is reserved before anything is spent on an input: requests exactly, rows by the running
mean of recent inputs. Tokenising settles the estimate to the exact number within milliseconds, and
nobody is refused after it, so the row limit may be overshot by what is being tokenised at that
moment; the request limit bounds that. A client's batch gets all its places or none.

An empty queue admits anything: a 429 promises that trying again can succeed, and it never could
for work that is by itself larger than the limit.
"""

import math
import random
from collections.abc import Callable

from service.engine.interfaces import Limits
from service.errors import QueueFullError

_DECAY = 0.8  # weight of the past in running means: about the last five batches or inputs


class Admission:
    """Owner of the reservations.

    Args:
        limits: requests and rows that may wait.
        jitter: uniform on [0, 1); spreads the clients that were told to come back.
    """

    def __init__(self, limits: Limits, jitter: Callable[[], float] = random.random) -> None:
        self._limits = limits
        self._jitter = jitter
        self._rows_per_input = 0.0
        self._rows_done = 0.0  # decayed sums: their ratio weighs batches by their size
        self._seconds_busy = 0.0
        self.requests = 0
        self.rows = 0

    def reserve(self, count: int) -> int:
        """Reserves `count` places, all or none.

        Returns:
            Rows that were set aside for each, to be settled once the rows are known.

        Raises:
            QueueFullError: there are not that many places.
        """
        estimate = round(self._rows_per_input)
        if self.requests and (
            self.requests + count > self._limits.queue_requests
            or self.rows + count * estimate > self._limits.queue_rows
        ):
            seconds = self.retry_after()
            raise QueueFullError(
                f"the queue is full ({self.requests} inputs, {self.rows} rows wait): "
                f"try again in {seconds} s",
                retry_after=seconds,
            )
        self.requests += count
        self.rows += count * estimate
        return estimate

    def settle(self, estimate: int, rows: int) -> None:
        """Replaces the estimate of one place by the rows that its input really takes."""
        self.rows += rows - estimate
        mean = self._rows_per_input or rows
        self._rows_per_input = _DECAY * mean + (1 - _DECAY) * rows

    def release(self, rows: int) -> None:
        """Gives one place back: its input goes to the model, failed, or is wanted no more."""
        self.requests -= 1
        self.rows -= rows

    def batch_finished(self, rows: int, seconds: float) -> None:
        """Learns how fast the model works."""
        self._rows_done = _DECAY * self._rows_done + rows
        self._seconds_busy = _DECAY * self._seconds_busy + seconds

    def retry_after(self) -> int:
        """Whole seconds until the rows that wait now will have left, at the recent pace.

        Jittered upwards by as much again, and by at least up to one second, so that the clients
        that were refused together do not come back together.
        """
        wait = 0.0
        if self._rows_done > 0:
            wait = self.rows * self._seconds_busy / self._rows_done
        return max(1, math.ceil(wait + self._jitter() * max(wait, 1.0)))
