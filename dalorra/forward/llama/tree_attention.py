"""Attention of the rows of trees: what a row follows is multiplied with it where it lies.

A row of a tail sees the keys of its state, of its question and of its own tail. The state's are the
same for all questions and samples, the question's for all samples. So scores are one product for a
state, one for each question and one for each tail, side by side, and their softmax is one: no key
is copied for those that see it, and no row is multiplied with those of other branches.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from dalorra.forward.llama.attention import by_row, causal_attention
from dalorra.forward.llama.tree import SCORES, Bunch, Rectangle, TreeLayout


class Keys(NamedTuple):
    """Keys and values of one level of a tree, `[…, keys, head_dim]` each.

    Rows that see them are in the order of what stands in the place of the dots, each of which has
    an equal share of them.
    """

    key: Tensor
    value: Tensor

    @property
    def flat(self) -> "Keys":
        """`[n, keys, head_dim]`."""
        return Keys(self.key.flatten(0, -3), self.value.flatten(0, -3))


class TreeAttention:
    """Attention in one layer, under L copies of all rows, with F tails behind each question.

    Args:
        layout: of the rows.
        key: `[L, kv_heads, R + F·T, head_dim]`.
        value: likewise.
        past: keys and values of the known part of each state, `[2, L, kv_heads, C, head_dim]`.
    """

    def __init__(
        self, layout: TreeLayout, key: Tensor, value: Tensor, past: Sequence[Tensor | None]
    ) -> None:
        self._layout = layout
        self._key, self._value = _Segments.of(key, layout), _Segments.of(value, layout)
        self._states = [
            _behind(known, key[:, :, rows], value[:, :, rows])
            for known, rows in zip(past, layout.states, strict=True)
        ]

    def of_all(self, query: Tensor) -> Tensor:
        """`[L, heads, R + F·T, head_dim]` → `[L, R + F·T, heads · head_dim]`."""
        states, questions, tails = [], [], []
        for rows, state in zip(self._layout.states, self._states, strict=True):
            if rows.start < rows.stop:
                states.append(by_row(causal_attention(query[:, :, rows], *state)))
        own = _Segments.of(query, self._layout)
        for bunch in self._layout.bunches:
            state, question, tail = self._levels(bunch)
            above = [state, question.flat]
            questions.append(
                _attended(own.before, bunch.questions, [state], question, bunch.unseen)
            )
            tails.append(_attended(own.behind, bunch.tails, above, tail, bunch.unseen_by_tails))
        parts = [torch.cat(some, dim=2).flatten(1, 2) for some in (questions, tails) if some]
        return torch.cat([*states, *parts], dim=1)

    def of_ends(self, query: Tensor) -> Tensor:
        """Of the rows that are read off, `[L, heads, F·E, …]` → `[L, F·E, heads · head_dim]`."""
        own = query.transpose(1, 2).unflatten(1, (-1, len(self._layout.ends)))
        parts = []
        for bunch in self._layout.bunches:
            state, question, tail = self._levels(bunch)
            above = [state, question.flat]
            parts.append(_attended(own, bunch.ends, above, tail, bunch.unseen_by_ends))
        return torch.cat(parts, dim=2).flatten(1, 2)

    def _levels(self, bunch: Bunch) -> tuple[Keys, Keys, Keys]:
        """Of the state `[L·kv_heads, N, …]`, and of questions and tails, see `tree_attention`."""
        own = (self._key, self._value)
        return (
            self._states[bunch.state].flat,
            Keys(*(_by_head(bunch.questions.spread(x.before)) for x in own)),
            Keys(*(_by_head(bunch.tails.spread(x.behind)) for x in own)),
        )


def tree_attention(query: Tensor, above: Sequence[Keys], own: Keys, unseen: Tensor) -> Tensor:
    """softmax(QKᵀ / √head_dim) V over the keys of all levels, scores in float32.

    Args:
        query: `[L, kv_heads, Q, F, group, rows, head_dim]`, of Q questions with F branches each.
        above: the levels that these follow, from the root, flat.
        own: of the rows' own level, `[L, kv_heads, Q, F, keys, head_dim]` each.
        unseen: `[Q or 1, 1, 1, rows, last]` bool, those of the last keys of all that a row does
            not see; every row sees a key.

    Returns:
        Like `query`.
    """
    if not query.numel():
        return query
    copies, _, questions, branches, _, rows, _ = query.shape
    keys = own.key.shape[-2] + sum(level.key.shape[-2] for level in above)
    at_once = max(SCORES // max(copies * questions * keys, 1), 1)  # rows of a question
    if branches * rows <= at_once:
        return _at_once(query, above, own, unseen)
    step = max(at_once // rows, 1)
    done = []
    for some, key, value in zip(*(x.split(step, dim=3) for x in (query, *own)), strict=True):
        blocks = zip(some.split(at_once, dim=5), unseen.split(at_once, dim=3), strict=True)
        parts = [_at_once(block, above, Keys(key, value), hidden) for block, hidden in blocks]
        done.append(torch.cat(parts, dim=5))
    return torch.cat(done, dim=3)


def _at_once(query: Tensor, above: Sequence[Keys], own: Keys, unseen: Tensor) -> Tensor:
    """Scores are rounded to the model's precision once, and so are weights."""
    shape, width = query.shape, query.shape[-1]
    levels = [level for level in (*above, own.flat) if level.key.shape[1]]
    counts = [level.key.shape[1] for level in levels]
    query = query.reshape(-1, width)
    scores = query.new_empty((len(query), sum(counts)), dtype=torch.float32)
    for (key, _), part in zip(levels, scores.split(counts, dim=-1), strict=True):
        rows = query.view(len(key), -1, width)
        scaled = torch.baddbmm(query.new_empty(()), rows, key.mT, beta=0, alpha=width**-0.5)
        part.copy_(scaled.flatten(0, 1))
    last = scores.view(*shape[:-1], -1)[..., -unseen.shape[-1] :]
    last.masked_fill_(unseen, -torch.inf)
    attended = torch.zeros_like(query)
    weights = scores.softmax(dim=-1).split(counts, dim=-1)
    for (_, value), part in zip(levels, weights, strict=True):
        rows = part.to(query.dtype).reshape(len(value), -1, value.shape[1])
        attended.view(len(value), -1, width).baddbmm_(rows, value)
    return attended.view(shape)


class _Segments(NamedTuple):
    """Heads by row.

    Attributes:
        before: of states and questions, `[L, 1, R, heads, w]`.
        behind: of tails, `[L, F, T, heads, w]`.
    """

    before: Tensor
    behind: Tensor

    @classmethod
    def of(cls, x: Tensor, layout: TreeLayout) -> Self:
        """Of `[L, heads, R + F·T, w]`."""
        rows, each = x.transpose(1, 2), max(layout.tails, 1)
        behind = rows[:, layout.first :]
        behind = behind.unflatten(1, (behind.shape[1] // each, each))
        return cls(rows[:, None, : layout.first], behind)


def _behind(known: Tensor | None, key: Tensor, value: Tensor) -> Keys:
    """Keys and values of known tokens and of those behind them, `[L, kv_heads, N, head_dim]`."""
    if known is None:
        return Keys(key, value)
    return Keys(torch.cat([known[0], key], dim=2), torch.cat([known[1], value], dim=2))


def _by_head(x: Tensor) -> Tensor:
    """`[L, F, Q, rows, kv_heads, w]` → `[L, kv_heads, Q, F, rows, w]`."""
    return x.permute(0, 4, 2, 1, 3, 5)


def _attended(
    query: Tensor, rows: Rectangle, above: Sequence[Keys], own: Keys, unseen: Tensor
) -> Tensor:
    """`tree_attention` of a bunch, `[L, F, rows, heads, w]` → `[L, F, n, heads · w]`."""
    grouped = rows.spread(query).unflatten(4, (own.key.shape[1], -1))
    found = tree_attention(grouped.permute(0, 4, 2, 1, 5, 3, 6), above, own, unseen)
    return rows.collect(found.permute(0, 3, 2, 5, 1, 4, 6).flatten(4))
