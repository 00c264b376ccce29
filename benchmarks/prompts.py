"""Prompts of random tokens."""

from collections.abc import Sequence

import torch

from dalorra.prompts import Prompt

CUE = tuple(range(100, 104))


def random_prompts(
    lengths: Sequence[int],
    generator: torch.Generator,
    cue: tuple[int, ...] = CUE,
    vocabulary: int = 20_000,
) -> list[Prompt]:
    """One for each length, which is without the cue."""
    return [
        Prompt(tuple(torch.randint(100, vocabulary, (n,), generator=generator).tolist()), cue)
        for n in lengths
    ]
