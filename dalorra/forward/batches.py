"""Which prompts go to the model together, and which of them share a forward.

A forward costs the rows of its prompts; something for the padding up to the longest of them, which
a `PackedLlama` has in attention alone (`Slots`) and an encoder in every product; and a price of its
own: all weights are read once. So a batch is split where the padding saved is worth one more.

`take` says what a queue hands over at once, `forwards` how that is carried out. Nothing else in the
project groups prompts: whoever has many of them gives all to `Predictor.predict`.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Self

import torch

from dalorra.hardware import has_amx
from dalorra.labels import TokenIds
from dalorra.prompts import Prompt, Scope

DEFAULT_ROW_BUDGET: Final = 2048
"""Most rows of a forward where nothing else is asked for, as the server's `batch_rows`."""

_CPU, _AMX, _GPU = 40, 100, 256
_IN_ATTENTION: Final = 0.25
_FULL: Final = 0.95


def packed_row_count(prompt: Prompt, samples: int, scope: Scope) -> int:
    """Rows that one prompt adds to a forward: T − k + M·t, or M·(T − k + t).

    t is k, and one more for each row of a trie.
    """
    if scope == "all_tokens":
        return samples * (len(prompt.prompt_ids) + prompt.tail_rows)
    return len(prompt.prompt_ids) + samples * prompt.tail_rows


def shared_row_count(prompt: Prompt, samples: int, scope: Scope) -> int:
    """Rows of these that other questions about the same state share."""
    return prompt.shared * (samples if scope == "all_tokens" else 1)


def own_row_count(prompt: Prompt, samples: int, scope: Scope) -> int:
    """Rows of these that are the prompt's own."""
    return packed_row_count(prompt, samples, scope) - shared_row_count(prompt, samples, scope)


def tree_row_count(prompts: Sequence[Prompt], samples: int, scope: Scope) -> int:
    """Rows of questions about one state, which is read once."""
    own = sum(own_row_count(prompt, samples, scope) for prompt in prompts)
    return shared_row_count(prompts[0], samples, scope) + own


def by_state(prompts: Sequence[Prompt]) -> dict[TokenIds, list[int]]:
    """The places of questions, by the state that they are about."""
    found: dict[TokenIds, list[int]] = {}
    for place, prompt in enumerate(prompts):
        found.setdefault(prompt.state_ids, []).append(place)
    return found


class State(NamedTuple):
    """What questions are about: its name, and the rows that a forward of them has once for all."""

    name: Hashable
    rows: int


@dataclass(frozen=True, slots=True)
class Batching:
    """How prompts share the forwards of one network.

    Attributes:
        budget: most rows of a forward, padding included where there is any. A prompt beyond it
            goes alone, in several forwards (`Network.in_pieces`).
        price: of a forward itself, in rows that could be computed in that time.
        padding: cost of a place of padding, in rows.
        pads: whether the network computes padding in every product, so that n prompts of at most r
            rows are n·r rows.
    """

    budget: int
    price: int
    padding: float
    pads: bool

    @classmethod
    def on(cls, device: torch.device, *, pads: bool, budget: int) -> Self:
        """For a network on this device.

        On a CPU the price is what `benchmarks.ragged` measures with two cores: prompts alone
        against the same prompts together; with AMX rows are cheaper beside it. On a GPU, the rows
        that are computed while the weights are read, whatever the model, about 800 TFLOP/s over
        3 TB/s. A place of padding in attention alone costs 0.18 to 0.39 of a row, with AMX
        (`benchmarks.padding`).

        Args:
            device: where the base is.
            pads: see the class.
            budget: likewise.
        """
        cpu = _AMX if has_amx() else _CPU
        price = cpu if device.type == "cpu" else _GPU
        return cls(budget, price, 1.0 if pads else _IN_ATTENTION, pads)

    @property
    def of_trees(self) -> Self:
        """For questions about states, where attention is not padded to the longest state."""
        return replace(self, padding=0.0)

    def take(self, rows: Sequence[int], states: Sequence[State] = ()) -> list[int]:
        """The next batch of those that wait: the first, and its nearest in length that fit.

        Where rows alone count and this leaves more than a twentieth of the budget free, one of
        them makes room for a longer one that fills it best.

        Of questions those about the state of the first go before any other: it is read in any case,
        so that their own rows may fill the budget, whatever it takes itself. Those about another
        are taken all or none where reading it again costs more than a forward.

        Args:
            rows: of each prompt that waits, the oldest first; one at least. Of questions without
                the rows of their states.
            states: of the questions; empty: they are none.

        Returns:
            Places in `rows`, in order; always the first, which goes alone beyond the budget.
        """
        if states:
            return self._take_questions(rows, states)
        # Stable: among equals the older one is looked at first.
        nearest = sorted(range(len(rows)), key=lambda i: abs(rows[i] - rows[0]))
        batch, longest, total = [0], rows[0], rows[0]
        for i in nearest[1:]:
            if self._rows(len(batch) + 1, max(longest, rows[i]), total + rows[i]) <= self.budget:
                batch.append(i)
                longest, total = max(longest, rows[i]), total + rows[i]
        free = self.budget - total
        if not self.pads and free > (1.0 - _FULL) * self.budget:
            waiting = set(range(len(rows))).difference(batch)
            gains = ((rows[i] - rows[out], out, i) for out in batch[1:] for i in waiting)
            gain, out, instead = max((g for g in gains if g[0] <= free), default=(0, 0, 0))
            if gain > 0:
                batch[batch.index(out)] = instead
        return sorted(batch)

    def forwards(self, rows: Sequence[int]) -> list[list[int]]:
        """Splits prompts into the forwards that cost the least together.

        A shortest path over the prompts in order of length, neighbours together. Where padding
        costs as much as rows, no other split is cheaper; where it costs less, one that mixes
        lengths may fill the budget better.

        Args:
            rows: of each prompt.

        Returns:
            Places in `rows`, by forward, longest prompts first.
        """
        order = sorted(range(len(rows)), key=lambda i: -rows[i])
        least, begin = [0.0], [0]  # of the first n prompts; where their last forward begins
        for end in range(1, len(order) + 1):
            total = rows[order[end - 1]]
            choices = [(least[-1] + self.price + total, end - 1)]  # alone, always allowed
            for start in range(end - 2, -1, -1):
                longest, count = rows[order[start]], end - start
                total += longest
                if self._rows(count, longest, total) > self.budget:
                    break  # a forward that begins earlier has more
                work = total + self.padding * (longest * count - total)
                choices.append((least[start] + self.price + work, start))
            best, start = min(choices)
            least.append(best)
            begin.append(start)
        groups: list[list[int]] = []
        end = len(order)
        while end:
            groups.append(order[begin[end] : end])
            end = begin[end]
        return groups[::-1]

    def _take_questions(self, rows: Sequence[int], states: Sequence[State]) -> list[int]:
        about: dict[Hashable, list[int]] = {}
        for i, state in enumerate(states):
            about.setdefault(state.name, []).append(i)
        alike = about.pop(states[0].name)
        batch = [0, *_fitting(alike[1:], rows, self.budget - rows[0])]
        total = states[0].rows + sum(rows[i] for i in batch)
        whole = [own + state.rows for own, state in zip(rows, states, strict=True)]
        for places in sorted(about.values(), key=lambda places: abs(whole[places[0]] - whole[0])):
            state = states[places[0]]
            some = _fitting(places, rows, self.budget - total - state.rows)
            if some == places or (some and state.rows <= self.price):
                batch += some
                total += state.rows + sum(rows[i] for i in some)
        return sorted(batch)

    def _rows(self, count: int, longest: int, total: int) -> int:
        """Rows of a forward of this many prompts."""
        return count * longest if self.pads else total


def _fitting(places: Sequence[int], rows: Sequence[int], room: int) -> list[int]:
    """The first of these that there is room for, and of the others whatever still fits."""
    some = []
    for place in places:
        if rows[place] <= room:
            some.append(place)
            room -= rows[place]
    return some


def sample_groups(samples: range, rows: int, budget: int) -> list[range]:
    """Splits the samples of a prompt that is alone into those of each forward.

    Args:
        samples: M of a bank.
        rows: of the prompt under one sample.
        budget: most rows of a forward; one sample goes alone beyond it.
    """
    step = max(budget // max(rows, 1), 1)
    return [samples[m : m + step] for m in range(0, len(samples), step)]
