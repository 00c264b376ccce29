"""A deep ensemble of adapters, trained side by side.

E members of rank r are one adapter of rank E · r whose masks pick a member (see
`dalorra.posteriors.Ensemble`). Every example runs under every member, and a member's gradient
comes from its own likelihood alone, so this is E trainings on identical batches from different
initial A, as in the authors' code. Differences: their code averages logits, the paper speaks of
predictions, which is what is averaged here; the gradients of the members are clipped together.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dalorra import posteriors
from dalorra.posteriors.bank import BankSpec, NoiseBank
from dalorra.posteriors.noise import ModuleTensors
from training.methods.method import Method


class Ensemble(Method):
    """Independent adapters, their probabilities averaged (Lakshminarayanan et al., 2017).

    Attributes:
        size: E, 3 in the paper.
    """

    title = "independent adapters, probabilities averaged"

    name: Literal["ensemble"] = "ensemble"
    noise_per: Literal["batch"] = "batch"
    size: int = Field(default=3, ge=2)

    def posterior(self) -> posteriors.Ensemble:
        return posteriors.Ensemble(members=self.size)

    def draw(
        self, modules: Sequence[ModuleTensors], samples: int, generator: torch.Generator
    ) -> NoiseBank:
        return self.posterior().bank(modules, BankSpec(samples=samples))

    def samples_of(self, batch: int) -> Tensor:
        """Every member, for every example."""
        return torch.arange(self.size)[None]

    @property
    def adapters(self) -> int:
        return self.size
