"""Which prompts go through a forward together.

Prompts of a forward are padded to the longest of them, and every forward has a price of its own:
all weights are read once. So a batch is split where the padding saved is worth another forward.
"""

from collections.abc import Sequence
from typing import Final

import torch

_FORWARD_ROWS: Final = {"cpu": 40, "cuda": 256}


def forward_rows(device: torch.device) -> int:
    """The price of a forward, in rows that could be computed in the time that it costs beside them.

    On a CPU, what `benchmarks.ragged` measures with two cores: prompts alone against the same
    prompts padded. On a GPU, the rows that are computed while the weights are read, whatever the
    model, about 800 TFLOP/s over 3.35 TB/s by the data sheet of an H100; not measured here.
    """
    return _FORWARD_ROWS.get(device.type, _FORWARD_ROWS["cuda"])


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
