"""Random masking: DALorRA's ablation, masks of a fixed size that nothing learns (Figure 2)."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from dalorra.posteriors import RandomMasks
from dalorra.posteriors.bank import MaskBank
from dalorra.posteriors.noise import ModuleTensors
from training.methods.method import Method


class RandomMask(Method):
    """Exactly K of r components off, drawn anew in training, M of them at inference.

    Attributes:
        off: K.
        noise_per: the paper draws one set of masks for a mini-batch (`batch`).
    """

    title = "K of r rank components off at random, nothing learned (DALorRA's ablation)"

    name: Literal["random_mask"] = "random_mask"
    off: int = Field(default=2, ge=0)

    def posterior(self) -> RandomMasks:
        return RandomMasks(off=self.off)

    def draw(
        self, modules: Sequence[ModuleTensors], samples: int, generator: torch.Generator
    ) -> MaskBank:
        return MaskBank(self.posterior().draw(modules, samples, generator))
