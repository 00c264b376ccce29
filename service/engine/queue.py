"""Tokenised entries that wait for the model, and which of them go together."""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING

from service.engine.entry import Entry

if TYPE_CHECKING:
    from dalorra.forward.batches import State

_WINDOW = 256
"""Entries of one predictor, oldest first, among which a batch is looked for."""


class Queue:
    """Owner of the waiting line. Pure data: it knows neither time nor threads."""

    def __init__(self) -> None:
        # A linked list with O(1) removal anywhere: a client may leave from the middle.
        self._entries: OrderedDict[Entry, tuple[int, State | None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, entry: Entry) -> None:
        """Adds an entry at the end."""
        self._entries[entry] = _rows(entry)

    def discard(self, entry: Entry) -> None:
        """Removes an entry from wherever it is."""
        self._entries.pop(entry, None)

    def take(self) -> list[Entry]:
        """Removes the next batch: the oldest entry and those that its predictor runs with it.

        All of one predictor: a forward is that of one adapter, and two small forwards cost what
        two batches do. Each predictor takes its turn when its entry is the oldest. The oldest
        entry is always part of the batch, so an entry with p others ahead of it leaves within
        p + 1 batches, whatever the lengths are. Questions about one state go together, whoever
        asked them.

        Returns:
            Entries, the oldest first; empty when nothing waits.
        """
        oldest = next(iter(self._entries), None)
        if oldest is None:
            return []
        alike = (
            (entry, *rows)
            for entry, rows in self._entries.items()
            if entry.predictor is oldest.predictor
        )
        window, rows, states = zip(*islice(alike, _WINDOW), strict=True)
        asked = [state for state in states if state is not None]
        batch = [window[place] for place in oldest.predictor.batching.take(rows, asked)]
        for entry in batch:
            del self._entries[entry]
        return batch


def _rows(entry: Entry) -> tuple[int, State | None]:
    """Of an entry by itself, and of the state that its question is about."""
    prompt, predictor = entry.prompt, entry.predictor
    if prompt is None or prompt.options is None:
        return entry.rows, None
    state = predictor.state_of(prompt)
    return predictor.packed_rows(prompt) - state.rows, state
