"""Which prompts go through a forward together.

A forward costs the rows of its prompts; something for the padding up to the longest of them, which
joined prompts have in attention alone (`Slots`); and a price of its own: all weights are
read once. So a batch is split where the padding saved is worth another forward.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import torch

from dalorra.hardware import has_amx
from dalorra.prompts import Prompt, Scope

DEFAULT_ROW_BUDGET: Final = 2048
"""Most rows of a forward where nothing else is asked for, as the server's `batch_rows`."""

_CPU, _AMX, _GPU = 40, 100, 256
_IN_ATTENTION: Final = 0.25


class ForwardCost(NamedTuple):
    """What a forward costs, in rows.

    Attributes:
        price: of the forward itself, in rows that could be computed in that time.
        padding: of each place of padding.
    """

    price: int
    padding: float

    def work(self, rows: int, padding: int) -> float:
        """What is computed, price left out."""
        return rows + self.padding * padding


def packed_row_count(prompt: Prompt, samples: int, scope: Scope) -> int:
    """Rows that one prompt adds to a forward: T − k + M·k, or M·T."""
    if scope == "all_tokens":
        return samples * prompt.tokens
    return len(prompt.prompt_ids) + samples * len(prompt.cue_ids)


def forward_cost(device: torch.device, *, joined: bool) -> ForwardCost:
    """The cost of forwards on a device.

    On a CPU the price is what `benchmarks.ragged` measures with two cores: prompts alone against
    the same prompts padded; with AMX rows are cheaper beside it. On a GPU, the rows that are
    computed while the weights are read, whatever the model, about 800 TFLOP/s over 3 TB/s. A place
    of padding in attention costs 0.18 to 0.39 of a row, with AMX (`benchmarks.padding`).

    Args:
        device: where the base is.
        joined: whether prompts are padded in attention alone.
    """
    padding = _IN_ATTENTION if joined else 1.0
    if device.type != "cpu":
        return ForwardCost(_GPU, padding)
    return ForwardCost(_AMX if has_amx() else _CPU, padding)


def forwards(
    prompts: Sequence[Prompt], members: range, scope: Scope, budget: int, cost: ForwardCost
) -> Iterator[tuple[list[int], list[range]]]:
    """Which prompts share a forward, and which members; one too long for the budget splits along M.

    Args:
        prompts: B prompts.
        members: of the bank.
        scope: of the adapter.
        budget: most rows of a forward, padding included as it costs.
        cost: of a forward.
    """
    rows = [packed_row_count(prompt, len(members), scope) for prompt in prompts]
    for indices in cheapest_groups(rows, budget, cost):
        if rows[indices[0]] <= budget:
            yield indices, [members]
            continue
        prompt = prompts[indices[0]]  # alone
        shared = packed_row_count(prompt, 0, scope)
        per_sample = packed_row_count(prompt, 1, scope) - shared
        step = max((budget - shared) // max(per_sample, 1), 1)
        yield indices, [members[m : m + step] for m in range(0, len(members), step)]


def cheapest_groups(rows: Sequence[int], budget: int, cost: ForwardCost) -> list[list[int]]:
    """Splits a batch into the forwards that cost the least together, neighbours in order of length.

    A shortest path over the sorted prompts. Where padding costs as much as rows, no other split is
    cheaper; where it costs less, one that mixes lengths may fill the budget better.

    Args:
        rows: of each prompt, without padding.
        budget: most work of a forward; a prompt beyond it goes alone.
        cost: of a forward.

    Returns:
        Indices into `rows`, by group, longest prompts first.
    """
    order = sorted(range(len(rows)), key=lambda i: -rows[i])
    least, begin = [0.0], [0]  # of the first n prompts; where their last group begins
    for end in range(1, len(order) + 1):
        own = rows[order[end - 1]]
        choices = [(least[-1] + cost.price + own, end - 1)]  # alone, always allowed
        for start in range(end - 2, -1, -1):
            longest = rows[order[start]]
            own += longest
            work = cost.work(own, longest * (end - start) - own)
            if work > budget:
                break  # a group that begins earlier has more
            choices.append((least[start] + cost.price + work, start))
        best, start = min(choices)
        least.append(best)
        begin.append(start)
    groups: list[list[int]] = []
    end = len(order)
    while end:
        groups.append(order[begin[end] : end])
        end = begin[end]
    return groups[::-1]
