"""Where the rows of states, questions and tails lie in products.

    rows   [state 1 | state 2 | … | question 1 | question 2 | … | tails under z_1 | … | under z_M]

A question follows its state, and its tail under each sample follows it. Tails of different
questions have different tries, and so different numbers of rows. A row sees its own segment up to
itself and those that this follows. The part of a state whose keys are known already has no rows.

Products treat every row alike, and none is padding. The tails of all questions under one sample lie
together, so that the noise is that of a sequence, whatever the questions are. Under `all_tokens`
there are L = M copies of all rows, each with F = 1 tail behind a question; else L is 1, and F is M
where samples differ.

In attention the questions of a state come in bunches, padded to the longest of a bunch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Final, NamedTuple, Self

import torch
from torch import Tensor

from dalorra.forward.llama.projection import ALL_ROWS, AdaptedRows
from dalorra.forward.llama.staging import to_device
from dalorra.labels import Tail, TokenIds
from dalorra.prompts import Scope

SCORES: Final = 1 << 17
"""Scores of each head that are computed at once; more only where a single row has more."""

WASTE: Final = 1 << 14
"""Scores of each head that padding may cost in a bunch; another bunch costs about as much."""


class Branch(NamedTuple):
    """A question: its tokens behind the state, and its tail."""

    ids: TokenIds
    tail: Tail

    @property
    def rows(self) -> "Rows":
        """Of its parts."""
        return Rows(len(self.ids), len(self.tail.ids), 1 + self.tail.nodes)


class Rows(NamedTuple):
    """Rows of questions, of their tails, and of those that are read off at the end of tails."""

    questions: int
    tails: int
    ends: int


class Tree(NamedTuple):
    """A state, how many of its first tokens have keys already, and the questions about it."""

    state: TokenIds
    known: int
    branches: Sequence[Branch]


@dataclass(frozen=True, slots=True, eq=False)
class Rectangle:
    """Q segments, padded to the longest; in padding there is another row, which nobody sees.

    Attributes:
        rows: `[Q, longest]`, the row in each place.
        places: `[n]`, the place of each row; None: there is no padding.
    """

    rows: Tensor
    places: Tensor | None

    @classmethod
    def of(cls, first: int, counts: Sequence[int], device: torch.device) -> Self:
        """Segments of so many rows, one behind the other from the `first` row on."""
        count, total = torch.tensor(counts), sum(counts)
        column = torch.arange(max(counts))
        rows = (count.cumsum(0) - count)[:, None] + column
        rows = first + rows.clamp_max(max(total - 1, 0))
        places = (column < count[:, None]).flatten().nonzero()[:, 0]
        padded = total < rows.numel()
        return cls(to_device(rows, device), to_device(places, device) if padded else None)

    def spread(self, x: Tensor) -> Tensor:
        """`[L, F, rows, heads, w]` → `[L, F, Q, longest, heads, w]`."""
        spread: Tensor = x.index_select(2, self.rows.flatten()).unflatten(2, self.rows.shape)
        return spread

    def collect(self, x: Tensor) -> Tensor:
        """`[L, F, Q, longest, d]` → `[L, F, n, d]`."""
        x = x.flatten(2, 3)
        return x if self.places is None else x.index_select(2, self.places)


@dataclass(frozen=True, slots=True, eq=False)
class Bunch:
    """Q questions of one state: P rows each, t of a tail, and A of these that are read off.

    Attributes:
        state: which.
        questions: among the rows of states and questions.
        tails: among those of the tails under one sample.
        ends: among those that are read off under one sample.
        unseen: `[1, 1, 1, P, P]` bool, what a row of a question does not see of it.
        unseen_by_tails: `[Q, 1, 1, t, P + t]`, what one of a tail does not, of question and tail.
        unseen_by_ends: `[Q, 1, 1, A, P + t]`, likewise.
    """

    state: int
    questions: Rectangle
    tails: Rectangle
    ends: Rectangle
    unseen: Tensor
    unseen_by_tails: Tensor
    unseen_by_ends: Tensor

    @classmethod
    def of(cls, state: int, branches: Sequence[Branch], before: Rows, device: torch.device) -> Self:
        """Of these questions, behind so many rows of others."""
        counts = [branch.rows for branch in branches]
        questions, tails, ends = (
            Rectangle.of(first, own, device)
            for first, own in zip(before, zip(*counts, strict=True), strict=True)
        )
        p, t = questions.rows.shape[1], tails.rows.shape[1]
        unseen = torch.ones((len(branches), t, p + t), dtype=torch.bool)
        unseen[:, :, p:] = ~torch.eye(t, dtype=torch.bool)  # in padding, too, a row sees a key
        for one, branch, own in zip(unseen, branches, counts, strict=True):
            one[:, : own.questions] = False
            one[: own.tails, p : p + own.tails] = ~branch.tail.visible
        first_end = torch.tensor([own.tails - own.ends for own in counts])
        at_ends = first_end[:, None] + torch.arange(ends.rows.shape[1])  # [Q, A], of the t
        by_ends = unseen[torch.arange(len(branches))[:, None], at_ends.clamp_max(t - 1)]
        return cls(
            state,
            questions,
            tails,
            ends,
            torch.ones((1, 1, 1, p, p), dtype=torch.bool, device=device).triu(1),
            to_device(unseen[:, None, None], device),
            to_device(by_ends[:, None, None], device),
        )


@dataclass(frozen=True, slots=True, eq=False)
class TreeLayout:
    """R rows of states and questions, and T of the tails of all questions under each sample.

    Attributes:
        order: the questions, counted through all trees, as they are laid out.
        answers: A of each, rows that are read off.
        ids, positions: `[1, R + T]`.
        states: the rows of each state.
        bunches: of questions.
        ends: `[E]`, which of the T are read off.
        cue_ends: `[questions]`, which of the T end a cue.
        first: R.
        tails: T.
    """

    order: list[int]
    answers: list[int]
    ids: Tensor
    positions: Tensor
    states: list[slice]
    bunches: list[Bunch]
    ends: Tensor
    cue_ends: Tensor
    first: int
    tails: int

    @classmethod
    def of(cls, trees: Sequence[Tree], samples: int, device: torch.device) -> Self:
        """On this device; bunches are chosen for so many samples."""
        stops = list(accumulate((len(t.state) - t.known for t in trees), initial=0))
        order: list[int] = []
        laid: list[tuple[int, Branch]] = []  # each behind so many tokens
        bunches, before, counted = [], Rows(stops[-1], 0, 0), 0
        for state, tree in enumerate(trees):
            for places in _bunched(tree, samples):
                branches = [tree.branches[place] for place in places]
                bunches.append(Bunch.of(state, branches, before, device))
                own = [branch.rows for branch in branches]
                before = Rows(*map(sum, zip(before, *own, strict=True)))
                order += [counted + place for place in places]
                laid += [(len(tree.state), branch) for branch in branches]
            counted += len(tree.branches)
        ids = [*(t.state[t.known :] for t in trees), *(branch.ids for _, branch in laid)]
        positions = [
            *(range(tree.known, len(tree.state)) for tree in trees),
            *(range(n, n + len(branch.ids)) for n, branch in laid),
        ]
        tails = [branch.tail for _, branch in laid]
        depths = [n + len(branch.ids) + branch.tail.depths for n, branch in laid]
        answers = [
            torch.arange(end - 1 - tail.nodes, end)
            for end, tail in zip(accumulate(len(t.ids) for t in tails), tails, strict=True)
        ]
        return cls(
            order=order,
            answers=[1 + tail.nodes for tail in tails],
            ids=to_device(_joined(ids, [tail.ids for tail in tails]), device),
            positions=to_device(_joined(positions, depths), device),
            states=[slice(*pair) for pair in pairwise(stops)],
            bunches=bunches,
            ends=to_device(_joined([], answers)[0], device),
            cue_ends=to_device(_joined([], [rows[:1] for rows in answers])[0], device),
            first=before.questions,
            tails=before.tails,
        )

    def as_given(self, laid_out: Sequence[Tensor]) -> list[Tensor]:
        """What belongs to the questions, in the order in which they were given."""
        found = dict(zip(self.order, laid_out, strict=True))
        return [found[i] for i in range(len(found))]


@dataclass(frozen=True, slots=True, eq=False)
class TreeRows:
    """The rows under M samples: L copies of all, with F tails behind each question, L · F = M.

    Attributes:
        copies: L.
        branches: F.
        first: R.
        adapted: rows that the noise of M sequences acts on.
        ends: `[F·E]`, rows that are read off.
        adapted_ends: the same as `adapted`, of these alone.
        cue_ends: `[F·questions]`, rows that end a cue.
        cos, sin: rotary embedding, `[1, 1, R + F·T, head_dim]`.
    """

    copies: int
    branches: int
    first: int
    adapted: AdaptedRows
    ends: Tensor
    adapted_ends: AdaptedRows
    cue_ends: Tensor
    cos: Tensor
    sin: Tensor

    @classmethod
    def of(
        cls, layout: TreeLayout, cos_sin: tuple[Tensor, Tensor], samples: int, scope: Scope
    ) -> Self:
        """Under M samples of an adapter that acts on these rows; `cos_sin` is of the layout's."""
        on_tails = scope == "answer_tokens"
        branches = samples if on_tails else 1
        starts = layout.first + layout.tails * torch.arange(branches, device=layout.ids.device)
        cos, sin = (
            torch.cat(
                [x[:, :, : layout.first], x[:, :, layout.first :].repeat(1, 1, branches, 1)], dim=2
            )
            for x in cos_sin
        )
        return cls(
            copies=samples // branches,
            branches=branches,
            first=layout.first,
            adapted=AdaptedRows(layout.first, layout.tails) if on_tails else ALL_ROWS,
            ends=(starts[:, None] + layout.ends).flatten(),
            adapted_ends=AdaptedRows(0, len(layout.ends)) if on_tails else ALL_ROWS,
            cue_ends=(starts[:, None] + layout.cue_ends).flatten(),
            cos=cos,
            sin=sin,
        )

    def branched(self, x: Tensor) -> Tensor:
        """Rows under one sample → the same under each, `[1, R + T, d]` → `[L, R + F·T, d]`."""
        if self.branches > 1:
            tails = x[:, self.first :].repeat(1, self.branches, 1)
            x = torch.cat([x[:, : self.first], tails], dim=1)
        return x.repeat(self.copies, 1, 1) if self.copies > 1 else x

    def by_sample(self, x: Tensor) -> Tensor:
        """`[L, F · n, d]` → `[M, n, d]`."""
        return x.reshape(self.copies * self.branches, -1, x.shape[-1])


def _joined(segments: Sequence[Sequence[int]], tails: Sequence[Tensor]) -> Tensor:
    """`[1, rows]`."""
    before = torch.tensor(list(chain.from_iterable(segments)), dtype=torch.long)
    return torch.cat([before, *tails])[None]


def _bunched(tree: Tree, samples: int) -> Iterator[list[int]]:
    """Questions that are alike, as many at once as their scores may be."""
    places = sorted(range(len(tree.branches)), key=lambda i: tree.branches[i].rows[::-1])
    bunch: list[int] = []
    real = 0  # scores of each head without padding
    for place in places:
        grown = [*bunch, place]
        own = _scores(tree, [place], samples)
        padded = _scores(tree, grown, samples)
        if bunch and (padded > SCORES or padded - real - own > WASTE):
            yield bunch
            grown, real = [place], 0
        bunch, real = grown, real + own
    if bunch:
        yield bunch


def _scores(tree: Tree, places: Sequence[int], samples: int) -> int:
    """Of each head, with padding."""
    rows, state = [tree.branches[place].rows for place in places], len(tree.state)
    p, t = max(own.questions for own in rows), max(own.tails for own in rows)
    return len(places) * (p * (state + p) + samples * t * (state + p + t))
