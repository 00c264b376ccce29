"""Tokenised entries that wait for the model, and which of them go together."""

from collections import OrderedDict
from itertools import islice

from service.engine.entry import Entry

_WINDOW = 256
"""Entries, oldest first, among which a batch looks for neighbours of similar length."""


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

    def oldest(self) -> Entry | None:
        """The entry that has waited longest."""
        return next(iter(self._entries), None)

    def take(self, budget: int) -> list[Entry]:
        """Removes the next batch: the oldest entry and its nearest in length among the oldest.

        All of one predictor: a forward is that of one adapter, and two small forwards cost what
        two batches do. Each takes its turn when its entry is the oldest.

        The forward pads its prompts to the longest, so n entries of at most r rows cost n·r; that
        product stays within `budget`. The oldest entry is always part of it, even when it is over
        the budget by itself: then it goes alone and the predictor splits it. So an entry with p
        others ahead of it leaves within p + 1 batches, whatever the lengths are.

        Returns:
            Entries from short to long; empty when nothing waits.
        """
        oldest = self.oldest()
        if oldest is None:
            return []
        alike = (
            entry for entry in islice(self._entries, _WINDOW) if entry.predictor is oldest.predictor
        )
        window = sorted(
            alike, key=lambda entry: abs(entry.rows - oldest.rows)
        )  # stable: among equals the older one goes first, and the oldest of all is at the front
        batch, longest = [oldest], oldest.rows
        for entry in window[1:]:
            padded = max(longest, entry.rows) * (len(batch) + 1)
            if padded <= budget:
                batch.append(entry)
                longest = max(longest, entry.rows)
        for entry in batch:
            del self._entries[entry]
        return sorted(batch, key=lambda entry: entry.rows)
