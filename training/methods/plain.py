"""Methods whose training is that of plain LoRA: no noise in any step."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dalorra.posteriors import Deterministic, Posterior
from dalorra.posteriors.bank import NoiseBank
from dalorra.posteriors.noise import ModuleTensors
from training.methods.method import Method


class PlainLora(Method):
    """Trains A and B as they are."""

    noise_per: Literal["batch"] = "batch"

    def posterior(self) -> Posterior:
        return Deterministic()

    def draw(
        self, modules: Sequence[ModuleTensors], samples: int, generator: torch.Generator
    ) -> NoiseBank:
        return self.posterior().mean(modules)


def gaussian_penalty(modules: Sequence[ModuleTensors], precision: float) -> Tensor:
    """−log of independent N(0, 1 / precision) priors on the elements of A and B, up to a constant.

    That is ½ · precision · (‖A‖² + ‖B‖²), summed over the modules.
    """
    squares = [m[name].square().sum() for m in modules for name in ("down", "up")]
    return 0.5 * precision * torch.stack(squares).sum()
