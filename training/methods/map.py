"""Plain LoRA with a Gaussian prior on A and B: the maximum of the posterior.

The baseline that both papers report has a weight decay of 1e-5 in AdamW. With their schedule it
shrinks the weights by about 2.5e-6 over the whole training (the sum of all learning rates times the
decay), so that it is maximum likelihood in all but name. The prior's strength is in the open here,
as a term of the objective: AdamW's decay is no prior, since it is not scaled with the gradient.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dalorra.posteriors import Deterministic
from dalorra.posteriors.bank import BankSpec, NoiseBank
from dalorra.posteriors.noise import ModuleTensors
from training.methods.method import Method


class Map(Method):
    """Plain LoRA with independent N(0, σ²) priors on the elements of A and B.

    Attributes:
        prior_precision: 1 / σ².
    """

    title = "plain LoRA with a Gaussian prior, maximum a posteriori"

    name: Literal["map"] = "map"
    noise_per: Literal["batch"] = "batch"
    prior_precision: float = Field(default=1.0, ge=0.0)

    def posterior(self) -> Deterministic:
        return Deterministic()

    def draw(
        self, modules: Sequence[ModuleTensors], samples: int, generator: torch.Generator
    ) -> NoiseBank:
        return Deterministic().bank(modules, BankSpec(samples=samples))

    def penalty(self, modules: Sequence[ModuleTensors]) -> Tensor:
        """−log p(A, B) up to a constant: ½ · precision · (‖A‖² + ‖B‖²)."""
        return gaussian_penalty(modules, self.prior_precision)


def gaussian_penalty(modules: Sequence[ModuleTensors], precision: float) -> Tensor:
    """½ · precision · (‖A‖² + ‖B‖²), summed over the modules."""
    squares = [m[name].square().sum() for m in modules for name in ("down", "up")]
    return 0.5 * precision * torch.stack(squares).sum()
