"""Monte-Carlo dropout inside the adapter (BayesLoRA, section 4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dalorra.posteriors.bank import BankSpec, MaskBank, of_rows, refuse_mask_settings
from dalorra.posteriors.noise import ModuleTensors, RankNoise
from dalorra.posteriors.posterior import Posterior

Position = Literal["input", "rank"]


class AdapterDropout(Posterior):
    """Dropout that stays on: every element is zero with probability p, or divided by 1 − p.

    A sample is one set of weights, A·diag(m), the same for every token of a pass: it is what makes
    an answer reproducible and independent of its batch. `nn.Dropout`, which both papers'
    code uses, draws m anew for every token; each token's marginal distribution is the same.

    Attributes:
        rate: p.
        position: `input` drops elements of x before A, as PEFT's `lora_dropout` and so both papers'
            experiments do; `rank` those of A·x, of which BayesLoRA's section 5 speaks: only then is
            the variance B diag((A x)²) Bᵀ · p / (1 − p), and zero in the null space of A.
    """

    rate: float = Field(gt=0.0, lt=1.0)
    position: Position = "input"

    def bank(self, modules: Sequence[ModuleTensors], spec: BankSpec) -> "MaskBank | DropoutBank":
        refuse_mask_settings(spec, "dropout")
        return self.draw(modules, spec.samples, torch.Generator().manual_seed(spec.seed))

    def draw(
        self, modules: Sequence[ModuleTensors], samples: int, generator: torch.Generator
    ) -> "MaskBank | DropoutBank":
        """A bank of that many samples."""
        device = modules[0]["down"].device
        axis = 0 if self.position == "rank" else 1
        kept = [
            (torch.rand((samples, m["down"].shape[axis]), generator=generator) >= self.rate)
            for m in modules
        ]
        masks = [(mask / (1.0 - self.rate)).to(device) for mask in kept]  # [M, r] or [M, d_in]
        if self.position == "rank":
            return MaskBank(torch.stack(masks, dim=1))
        return DropoutBank(tuple(masks), tuple(m["down"] for m in modules))

    def mean(self, modules: Sequence[ModuleTensors]) -> MaskBank:
        """Dropout off."""
        down = modules[0]["down"]
        return MaskBank(torch.ones((1, len(modules), down.shape[0]), device=down.device))


@dataclass(frozen=True, slots=True, eq=False)
class DropoutBank:
    """M samples of what is left of each module's input.

    Attributes:
        masks: per module `[M, d_in]`, zero or 1 / (1 − p).
        downs: per module its A, `[r, d_in]`.
    """

    masks: tuple[Tensor, ...]
    downs: tuple[Tensor, ...]

    @property
    def samples(self) -> int:
        return self.masks[0].shape[0]

    @property
    def head_probabilities(self) -> None:
        return None

    def noise(self, sample_index: Tensor) -> list[RankNoise]:
        return [
            _InputMask(of_rows(mask, sample_index), down)
            for mask, down in zip(self.masks, self.downs, strict=True)
        ]

    def plain(self, sample: int, modules: Sequence[ModuleTensors]) -> list[tuple[Tensor, Tensor]]:
        """B · A · diag(m) = B · (A · diag(m))."""
        return [
            (m["down"].float() * mask[sample], m["up"].float())
            for m, mask in zip(modules, self.masks, strict=True)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class _InputMask:
    """`RankNoise` of dropout in front of A: A (m ⊙ x), m `[batch or 1, rows or 1, d_in]`."""

    mask: Tensor
    down: Tensor

    def __call__(self, activations: Tensor, inputs: Tensor) -> Tensor:
        masked = inputs * self.mask.to(inputs.dtype)
        return F.linear(masked, self.down.to(inputs.dtype)).to(activations.dtype)
