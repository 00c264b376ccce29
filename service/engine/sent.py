"""What each client has sent, so that none is told what others have."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from dalorra.blocks import BLOCK, Digest, digests, leading
from service.engine.entry import Answer, Entry

if TYPE_CHECKING:
    from dalorra.forward.batches import State

_MOST: Final = 32_768
"""Blocks: more tokens than a prefix cache keeps, in about 5 MB."""


class Sent:
    """The beginnings of states that clients have sent; the least recent ones are forgotten first.

    The prefix cache serves whoever asks. How much of a state it knew is told to a client only as
    far as that beginning is its own: else it could find out, block by block, what others ask about.

    Args:
        most: blocks that are remembered.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._blocks: OrderedDict[Digest, None] = OrderedDict()

    def own(
        self, client: Hashable | None, answered: Sequence[tuple[Entry, Answer]]
    ) -> list[Answer]:
        """Answers of one request, whose `cached_tokens` the client itself had sent before."""
        sent: dict[State | None, int] = {None: 0}
        for entry, _ in answered:
            if entry.prompt is not None and entry.state not in sent:
                sent[entry.state] = self.add(client, entry.prompt.state_ids)
        return [
            replace(answer, cached_tokens=min(answer.cached_tokens, sent[entry.state]))
            for entry, answer in answered
        ]

    def add(self, client: Hashable | None, state: Sequence[int]) -> int:
        """Remembers a state; returns how many of its first tokens the client had sent before."""
        names = list(digests(state, salt=repr(client).encode()))
        before = leading(names, self._blocks)
        for name in reversed(names):  # the start comes last, and is forgotten last
            self._blocks[name] = None
            self._blocks.move_to_end(name)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)
        return BLOCK * before
