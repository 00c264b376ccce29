"""Tokenised entries that wait for the model, and which of them go together."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import replace
from itertools import islice
from operator import attrgetter

from service.engine.entry import Entry
from service.engine.pace import Speed

_WINDOW = 256
"""Entries of one predictor among which a batch is looked for."""

_by_turn: Callable[[Entry], int] = attrgetter("turn")
_by_deadline: Callable[[Entry], float] = attrgetter("deadline")


class Queue:
    """Owner of the waiting line. Pure data: it reads no clock and knows no threads.

    Clients take turns, by rows: an entry's turn is where its client's last one ended, or where
    service is now if its client has nothing waiting (self-clocked fair queueing: S. J. Golestani,
    A self-clocked fair queueing scheme for broadband applications, INFOCOM 1994). Of one client,
    entries have their turns as they came.
    """

    def __init__(self) -> None:
        # O(1) removal anywhere: clients leave as they like.
        self._entries: dict[Entry, None] = {}
        self._ends: dict[Hashable, int] = {}  # turn of each client's last entry
        self._turn = 0  # of the entry that the last batch was made for
        self.rows = 0

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, entry: Entry) -> None:
        """Adds an entry."""
        entry.turn = max(self._turn, self._ends.get(entry.client, 0)) + entry.rows
        self._ends[entry.client] = entry.turn
        self._entries[entry] = None
        self.rows += entry.rows

    def discard(self, entry: Entry) -> None:
        """Removes an entry from wherever it is."""
        if entry in self._entries:
            del self._entries[entry]
            self.rows -= entry.rows

    def hopeless(self, now: float, speed: Speed) -> list[Entry]:
        """Those that would not be answered in time, though the most urgent always go first.

        There are some only after the model has become slower: places are given to what can be
        answered in time.
        """
        if not self._entries or self._all_in_time(now, speed):
            return []
        late, ahead = [], 0
        for entry in sorted(self._entries, key=_by_deadline):
            if now + speed.seconds(ahead + entry.rows) > entry.deadline:
                late.append(entry)
            else:
                ahead += entry.rows
        return late

    def take(self, now: float, speed: Speed) -> list[Entry]:
        """Removes the next batch: the entry whose turn it is, and those that are run with it.

        All of one predictor: a forward is that of one adapter, and two small forwards cost what
        two batches do. The entry whose turn it is always is part of the batch, so one with p others
        ahead of it leaves within p + 1 batches, whatever the lengths are. But nobody takes a turn
        that would make another one late. Questions about one state go together, whoever asked them.

        Args:
            now: in loop time.
            speed: of the batch.

        Returns:
            Entries, in the order of their turns; empty when nothing waits.
        """
        if not self._entries:
            return []
        choice = self._affordable(now, speed)
        first = choice[0]
        alike = (entry for entry in choice if entry.predictor is first.predictor)
        window = list(islice(alike, _WINDOW))
        rows = [entry.own_rows for entry in window]
        states = [entry.state for entry in window if entry.state is not None]
        batching = first.predictor.batching
        for_state = speed.per_row * (first.alone_rows - first.own_rows)
        budget = round(min(batching.budget, speed.rows(first.deadline - now - for_state)))
        batch = [window[place] for place in replace(batching, budget=budget).take(rows, states)]
        self._turn = max(self._turn, first.turn)
        for entry in batch:
            self.discard(entry)
        if not self._entries:
            self._ends.clear()
        return batch

    def _affordable(self, now: float, speed: Speed) -> list[Entry]:
        """Entries that may run next without making another one late, first the one that must."""
        if self._all_in_time(now, speed, batches=2):
            return sorted(self._entries, key=_by_turn)
        batch_rows = min(self.rows, speed.batch_rows)
        batch_seconds = speed.seconds(batch_rows)
        by_deadline = sorted(self._entries, key=_by_deadline)
        # A batch of which a part would be late is wasted to that part: who still has time goes
        # first, and whoever has not may find the model faster than expected.
        in_time = [
            entry
            for entry in by_deadline
            if now + speed.seconds(max(entry.alone_rows, batch_rows / 4)) <= entry.deadline
        ]
        chosen, ahead, urgent = [], 0, False
        for entry in in_time:
            if urgent and ahead + entry.rows > batch_rows:
                break
            chosen.append(entry)
            ahead += entry.rows
            # After this batch, those with an earlier deadline, and to the end of its own batch.
            batches = 1 + math.ceil(ahead / batch_rows)
            if not urgent and now + batches * batch_seconds > entry.due:
                if ahead >= batch_rows:
                    break
                urgent = True
        if not urgent:
            chosen.sort(key=_by_turn)
        return chosen or by_deadline

    def _all_in_time(self, now: float, speed: Speed, batches: int = 0) -> bool:
        """Whether everyone could wait for all others, and for so many more batches."""
        batch = max(speed.batch_rows, *(entry.rows for entry in self._entries))
        last = now + speed.seconds(self.rows) + batches * speed.seconds(min(batch, self.rows))
        return all(entry.due >= last for entry in self._entries)
