"""Tokenised entries that wait for the model, and which of them go together."""

from collections import OrderedDict
from itertools import islice

from service.engine.entry import Entry

_WINDOW = 256
"""Entries of one predictor, oldest first, among which a batch is looked for."""


class Queue:
    """Owner of the waiting line. Pure data: it knows neither time nor threads."""

    def __init__(self) -> None:
        # A linked list with O(1) removal anywhere: a client may leave from the middle.
        self._entries: OrderedDict[Entry, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, entry: Entry) -> None:
        """Adds an entry at the end."""
        self._entries[entry] = None

    def discard(self, entry: Entry) -> None:
        """Removes an entry from wherever it is."""
        self._entries.pop(entry, None)

    def take(self) -> list[Entry]:
        """Removes the next batch: the oldest entry and those that its predictor runs with it.

        All of one predictor: a forward is that of one adapter, and two small forwards cost what
        two batches do. Each predictor takes its turn when its entry is the oldest. The oldest
        entry is always part of the batch, so an entry with p others ahead of it leaves within
        p + 1 batches, whatever the lengths are.

        Returns:
            Entries, the oldest first; empty when nothing waits.
        """
        oldest = next(iter(self._entries), None)
        if oldest is None:
            return []
        alike = (entry for entry in self._entries if entry.predictor is oldest.predictor)
        window = list(islice(alike, _WINDOW))
        places = oldest.predictor.batching.take([entry.rows for entry in window])
        batch = [window[place] for place in places]
        for entry in batch:
            del self._entries[entry]
        return batch
