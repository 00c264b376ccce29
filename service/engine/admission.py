"""Who gets a place in the queue: what can be answered in time, and no client more than its share.

A place is reserved before anything is spent on an input: requests exactly, rows by the length of
the input. Tokenising settles the estimate to the exact number within milliseconds, and nobody is
refused after it, so the row limit may be overshot by what is being tokenised at that moment; the
request limit bounds that. A client's batch gets all its places or none.

Requests, rows and the time until the last of them is answered have a limit each. Of each, a client
may hold as much as it leaves free to the others: alone half of it, one of n that all want more an
(n + 1)th (A. K. Choudhury, E. L. Hahne, Dynamic queue length thresholds for shared-memory packet
switches, IEEE/ACM Transactions on Networking 6, 1998).

A 429 promises that trying again can succeed. So an empty queue admits anything, whatever the limits
on requests and rows are, and what would take longer than its deadline on its own is called too
large instead.
"""

import math
import random
from collections.abc import Callable, Hashable, Sequence
from typing import Final, NamedTuple

from service.engine.entry import Entry
from service.engine.interfaces import Limits
from service.engine.pace import Pace
from service.errors import BatchTooLargeError, QueueFullError

_SPARE: Final = 0.4
"""Share of the time for an answer that estimates leave unused. The end of a batch may be a whole
one, a quarter of the time, behind the end of the rows ahead; the rest is to be wrong by."""


class _Held(NamedTuple):
    requests: int = 0
    rows: int = 0


class Admission:
    """Owner of the reservations.

    Args:
        limits: requests and rows that may wait.
        pace: how fast the model works.
        jitter: uniform on [0, 1); spreads the clients that were told to come back.
    """

    def __init__(
        self, limits: Limits, pace: Pace, jitter: Callable[[], float] = random.random
    ) -> None:
        self._limits = limits
        self._pace = pace
        self._jitter = jitter
        self._held: dict[Hashable, _Held] = {}
        self.requests = 0
        self.rows = 0

    def reserve(
        self, rows: Sequence[int], *, client: Hashable | None, within: float, now: float
    ) -> None:
        """Reserves a place for each input, all or none.

        Args:
            rows: of each input, an estimate to be settled once they are known.
            client: who asks; None has no share and may take all that is free.
            within: seconds until the answers are of no use any more.
            now: in loop time.

        Raises:
            QueueFullError: there are not that many places, or they would be answered too late.
            BatchTooLargeError: they would be too late though nothing else waited.
        """
        self._check(len(rows), sum(rows), client, within, now)
        self._take(client, len(rows), sum(rows))

    def settle(self, entry: Entry, rows: int) -> None:
        """Replaces the estimate of one place by the rows that its input really takes."""
        self._take(entry.client, 0, rows - entry.rows)
        entry.rows = rows

    def release(self, entry: Entry) -> None:
        """Gives one place back: its input goes to the model, failed, or is wanted no more."""
        self._take(entry.client, -1, -entry.rows)

    def retry_after(self, share: float, now: float) -> int:
        """Whole seconds until that share of what waits now will have left.

        Jittered upwards by as much again, and by at least up to one second, so that the clients
        that were refused together do not come back together.
        """
        wait = share * (self._pace.rest(now) + self._pace.typical(now).seconds(self.rows))
        return max(1, math.ceil(wait + self._jitter() * max(wait, 1.0)))

    def _check(
        self, requests: int, rows: int, client: Hashable | None, within: float, now: float
    ) -> None:
        alone = self._pace.typical(now).seconds(rows)
        if alone > within:
            raise BatchTooLargeError(
                f"what is asked ({requests} inputs, {rows} rows) takes about {alone:.3g} s here, "
                f"and an answer may take {within:g} s: send fewer or shorter inputs at once"
            )
        held = self._held.get(client, _Held()) if client is not None else _Held()
        speed, rest = self._pace.careful(now), self._pace.rest(now)
        late = f"the answer would not be ready within {within:g} s"
        full = "the queue is full"
        excesses = [
            _excess(full, self.requests, held.requests, requests, self._limits.queue_requests),
            _excess(full, self.rows, held.rows, rows, self._limits.queue_rows),
            _excess(
                late,
                rest + speed.seconds(self.rows),
                speed.seconds(held.rows),
                speed.seconds(rows),
                within * (1.0 - _SPARE),
            ),
        ]
        share, reason = max(excesses)
        if share > 0.0:
            seconds = self.retry_after(share, now)
            raise QueueFullError(
                f"{reason} ({self.requests} inputs, {self.rows} rows wait): "
                f"try again in {seconds} s",
                retry_after=seconds,
            )

    def _take(self, client: Hashable | None, requests: int, rows: int) -> None:
        self.requests += requests
        self.rows += rows
        held = self._held.pop(client, _Held())
        held = _Held(held.requests + requests, held.rows + rows)
        if held.requests:
            self._held[client] = held


def _excess(
    reason: str, used: float, held: float, wanted: float, limit: float
) -> tuple[float, str]:
    """Share of what is used that has to leave before `wanted` more have a place; and why not now.

    Args:
        reason: why not, where no share but the limit itself is in the way.
        used: by all clients.
        held: by this client, whose share it counts against.
        wanted: by it, too.
        limit: on `used`.
    """
    excess = used + held + wanted - limit
    if excess <= 0.0 or not used:  # where nothing has to leave, waiting would not help
        return 0.0, ""
    if used + wanted <= limit:
        reason = "this key holds its share of the queue"
    return min(excess / (used + held), 1.0), reason
