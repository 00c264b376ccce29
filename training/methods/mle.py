"""Plain LoRA, trained for maximum likelihood: no noise, no prior, one pass."""

from collections.abc import Sequence
from typing import Literal

import torch

from dalorra.posteriors import Deterministic
from dalorra.posteriors.bank import BankSpec, NoiseBank
from dalorra.posteriors.noise import ModuleTensors
from training.methods.method import Method


class Mle(Method):
    """Plain LoRA (Hu et al., 2022)."""

    title = "plain LoRA, maximum likelihood"

    name: Literal["mle"] = "mle"
    noise_per: Literal["batch"] = "batch"

    def posterior(self) -> Deterministic:
        return Deterministic()

    def draw(
        self, modules: Sequence[ModuleTensors], samples: int, generator: torch.Generator
    ) -> NoiseBank:
        return Deterministic().bank(modules, BankSpec(samples=samples))
