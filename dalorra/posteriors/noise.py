"""What a posterior does to A·x, and what it is made from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

ModuleTensors = Mapping[str, Tensor]
"""What one adapted module learned: A `[r, d_in]` as `down`, B `[d_out, r]` as `up`, and the
tensors that its posterior adds, by their names."""

RankNoise = Callable[[Tensor, Tensor], Tensor]
"""Maps (A·x `[..., rows, r]`, x `[..., rows, d_in]`) to the perturbed A·x, same shape."""


def base_only(activations: Tensor, inputs: Tensor) -> Tensor:  # noqa: ARG001 - a `RankNoise`
    """The `RankNoise` of a frozen prompt: no update at all; the layer then skips A and B."""
    return torch.zeros_like(activations)


@dataclass(frozen=True, slots=True)
class RowMask:
    """`RankNoise` of rank masking: z ⊙ (A x).

    Attributes:
        mask: `[batch or 1, rows or 1, r]`.
    """

    mask: Tensor

    def __call__(self, activations: Tensor, inputs: Tensor) -> Tensor:
        return activations * self.mask.to(activations.dtype)
