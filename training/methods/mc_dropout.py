"""Monte-Carlo dropout in the adapter: BayesLoRA as published, and both papers' baseline.

Differences from the authors' code, all in `dalorra.posteriors.dropout`: one mask for all tokens of
a pass instead of one for each token, in training as in serving.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from dalorra.posteriors import AdapterDropout
from dalorra.posteriors.bank import NoiseBank
from dalorra.posteriors.noise import ModuleTensors
from training.methods.method import Method


class McDropout(Method):
    """Dropout inside the adapter, kept on at inference (BayesLoRA; Gal and Ghahramani, 2016).

    Attributes:
        rate: p; 0.1 as in DALorRA's comparison.
        position: see `AdapterDropout`.
    """

    title = "dropout inside the adapter, kept on at inference (BayesLoRA)"

    name: Literal["mc_dropout"] = "mc_dropout"
    rate: float = Field(default=0.1, gt=0.0, lt=1.0)
    position: Literal["input", "rank"] = "input"

    def posterior(self) -> AdapterDropout:
        return AdapterDropout(rate=self.rate, position=self.position)

    def draw(
        self, modules: Sequence[ModuleTensors], samples: int, generator: torch.Generator
    ) -> NoiseBank:
        return self.posterior().draw(modules, samples, generator)
