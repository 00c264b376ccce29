"""Which prompts go through a forward together.

Where the prompts of a forward are padded to the longest of them, a batch is split if the padding
saved is worth another forward: each has a price of its own, all weights are read once. Where they
are joined without padding, there are as few forwards as the budget of rows allows.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import torch

from dalorra.packing import Scope, packed_row_count
from dalorra.processor import has_amx
from dalorra.prompts import Prompt

DEFAULT_ROW_BUDGET: Final = 2048
"""Most rows of a forward where nothing else is asked for, as the server's `batch_rows`."""

_CPU, _AMX, _GPU = 40, 100, 256  # the last one for encoders alone


def forward_rows(device: torch.device) -> int:
    """The price of a forward, in rows that could be computed in the time that it costs beside them.

    On a CPU, what `benchmarks.ragged` measures with two cores: prompts alone against the same
    prompts padded; with AMX rows are cheaper beside it. On a GPU, the rows that are computed while
    the weights are read, whatever the model, about 800 TFLOP/s over 3.35 TB/s by the data sheet of
    an H100; not measured here.
    """
    if device.type != "cpu":
        return _GPU
    return _AMX if has_amx() else _CPU


def forwards(
    prompts: Sequence[Prompt], members: range, scope: Scope, budget: int, price: int | None
) -> Iterator[tuple[list[int], list[range]]]:
    """Which prompts share a forward, and which members; one too long for the budget splits along M.

    Args:
        prompts: B prompts.
        members: of the bank.
        scope: of the adapter.
        budget: most rows of a forward, padding included.
        price: of a forward, in rows; None: prompts are joined.
    """
    rows = [packed_row_count(prompt, len(members), scope) for prompt in prompts]
    groups = full_groups(rows, budget) if price is None else cheapest_groups(rows, budget, price)
    for indices in groups:
        if rows[indices[0]] <= budget:
            yield indices, [members]
            continue
        prompt = prompts[indices[0]]  # alone
        shared = packed_row_count(prompt, 0, scope)
        per_sample = packed_row_count(prompt, 1, scope) - shared
        step = max((budget - shared) // max(per_sample, 1), 1)
        yield indices, [members[m : m + step] for m in range(0, len(members), step)]


def cheapest_groups(rows: Sequence[int], budget: int, price: int) -> list[list[int]]:
    """Splits a batch into forwards with the least Σ (price + prompts · rows of the longest).

    Of any split, one with groups of neighbours in order of length costs no more, so it is enough to
    look at those: a shortest path over the sorted prompts.

    Args:
        rows: of each prompt, without padding.
        budget: most rows of a forward, padding included; a prompt beyond it goes alone.
        price: of a forward, in rows.

    Returns:
        Indices into `rows`, by group, longest prompts first.
    """
    order = sorted(range(len(rows)), key=lambda i: -rows[i])
    cost, begin = [0], [0]  # of the first n prompts; where their last group begins
    for end in range(1, len(order) + 1):
        choices = [(cost[-1] + price + rows[order[end - 1]], end - 1)]  # alone, always allowed
        for start in range(end - 2, -1, -1):
            padded = rows[order[start]] * (end - start)
            if padded > budget:
                break  # a group that begins earlier has more
            choices.append((cost[start] + price + padded, start))
        least, start = min(choices)
        cost.append(least)
        begin.append(start)
    groups: list[list[int]] = []
    end = len(order)
    while end:
        groups.append(order[begin[end] : end])
        end = begin[end]
    return groups[::-1]


def full_groups(rows: Sequence[int], budget: int) -> list[list[int]]:
    """Fills one forward after the other, prompts of like length together, longest first.

    Args:
        rows: of each prompt.
        budget: most rows of a forward; a prompt beyond it goes alone.

    Returns:
        Indices into `rows`, by group.
    """
    groups: list[list[int]] = []
    room = 0
    for index in sorted(range(len(rows)), key=lambda i: -rows[i]):
        if rows[index] > room:
            groups.append([])
            room = budget
        groups[-1].append(index)
        room -= rows[index]
    return groups
