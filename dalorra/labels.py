"""Labels of any text: a trie of their tokens behind the answer cue.

A label's probability is that of its tokens after the cue, one after the other, over the whole
vocabulary; then all labels are normalised. Labels that begin with the same tokens share the rows of
these, and a label's last token needs no row, since nothing is read off it:

    cue ─ card ─ _ ─ arrival            rows: card, card_, card_del
                   ─ del ─ ivery

A label whose tokens begin another's would be at least as probable as the other, whatever the input.
So it ends with the end-of-text token: what is compared are texts that exclude each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Final, Literal, Self

import torch
from torch import Tensor

LabelsBy = Literal["auto", "tokens", "trie", "head"]
"""How labels are read off: one token each, a trie, or classes of a head that the adapter brings;
`auto`: tokens where each label is one, else a trie."""

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class LabelTrie:
    """The labels' tokens as a tree whose root is the end of the cue.

    Attributes:
        paths: token ids of each label, K of them; none begins with another.
    """

    paths: tuple[TokenIds, ...]

    @cached_property
    def nodes(self) -> tuple[TokenIds, ...]:
        """What has a row: every beginning of a label that goes on, n of them, parents first."""
        found = (path[:end] for path in self.paths for end in range(1, len(path)))
        return tuple(dict.fromkeys(found))

    @property
    def rows(self) -> int:
        """A: what labels are read off, the end of the cue and the nodes."""
        return 1 + len(self.nodes)


def end_apart(paths: Sequence[TokenIds], end: int | None) -> tuple[TokenIds, ...] | None:
    """The paths, with `end` after each that begins another; None where that takes an `end`."""
    beginnings = {begun for path in paths for begun in accumulate((t,) for t in path[:-1])}
    if beginnings.isdisjoint(paths):
        return tuple(paths)
    return None if end is None else tuple((*p, end) if p in beginnings else p for p in paths)


@dataclass(frozen=True, eq=False)
class PathSums:
    """Log-probabilities of the labels from logits at the A rows of their trie.

    Attributes:
        tokens: `[U]`, every token id that is on a path.
        nodes, places: `[steps]`, where each step starts, of the A rows, and its token, of the U.
        on_path: `[steps, K]` float32, 1 where a step is on a label's path.
    """

    tokens: Tensor
    nodes: Tensor
    places: Tensor
    on_path: Tensor

    @classmethod
    def of(cls, trie: LabelTrie, device: torch.device) -> Self:
        """On this device."""
        row = {node: i for i, node in enumerate(((), *trie.nodes))}
        token = {id_: i for i, id_ in enumerate(sorted({t for path in trie.paths for t in path}))}
        paths = [[(row[p[:i]], token[t]) for i, t in enumerate(p)] for p in trie.paths]
        step = {step: i for i, step in enumerate(dict.fromkeys(s for path in paths for s in path))}
        on_path = torch.zeros(len(step), len(paths))
        for k, path in enumerate(paths):
            on_path[[step[s] for s in path], k] = 1.0
        nodes, places = torch.tensor(list(step), device=device).unbind(dim=1)
        return cls(torch.tensor(list(token), device=device), nodes, places, on_path.to(device))

    def __call__(self, logits: Tensor, normalisers: Tensor) -> Tensor:
        """`[…, A, U]` of the tokens, `[…, A]` of the vocabulary → `[…, K]`."""
        return (logits[..., self.nodes, self.places] - normalisers[..., self.nodes]) @ self.on_path


Labels = Tensor | LabelTrie
"""Where the labels are read off: `[K]` rows of the output projection (token ids, or classes where a
class head is in its place), each one a label, or a trie of longer ones."""


def answer_rows(labels: Labels | Sequence[LabelTrie]) -> int:
    """A: rows at the end of the tail that labels are read off; of several tries, the largest's."""
    if isinstance(labels, Tensor):
        return 1
    return labels.rows if isinstance(labels, LabelTrie) else max(trie.rows for trie in labels)


@dataclass(frozen=True, eq=False)
class Tail:
    """What follows a prompt: the cue and the trie's rows. The last A of its rows are read off.

    Attributes:
        ids: `[t]` token ids; t = k + n.
        depths: `[t]`, position of each behind the prompt.
        visible: `[t, t]` bool, which of them each sees: its ancestors and itself.
        nodes: n.
    """

    ids: Tensor
    depths: Tensor
    visible: Tensor
    nodes: int

    def on(self, device: torch.device) -> "Tail":
        """The same on a device, where it is kept."""
        return _moved(self, device)


_KEPT: Final = 64
"""Tails that are kept; an adapter has one."""


@lru_cache(_KEPT)
def _moved(tail: Tail, device: torch.device) -> Tail:
    return Tail(tail.ids.to(device), tail.depths.to(device), tail.visible.to(device), tail.nodes)


@lru_cache(_KEPT)
def tail_of(cue_ids: TokenIds, trie: LabelTrie | None) -> Tail:
    """Lays out a cue and the trie behind it."""
    k, nodes = len(cue_ids), trie.nodes if trie else ()
    place = {node: k + i for i, node in enumerate(nodes)}
    visible = torch.zeros((k + len(nodes),) * 2, dtype=torch.bool)
    visible[:k, :k] = torch.ones((k, k), dtype=torch.bool).tril()
    for node, row in place.items():
        visible[row] = visible[place.get(node[:-1], k - 1)]
        visible[row, row] = True
    return Tail(
        torch.tensor([*cue_ids, *(node[-1] for node in nodes)], dtype=torch.long),
        torch.tensor([*range(k), *(k + len(node) - 1 for node in nodes)], dtype=torch.long),
        visible,
        len(nodes),
    )
