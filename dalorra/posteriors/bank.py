"""The fixed samples that an adapter is served with.

A bank is drawn once from a seed, so an answer is reproducible and does not depend on the batch it
ran in; every request sees the same M samples (common random numbers).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from dalorra.errors import ConfigError
from dalorra.posteriors.masks import Sampler, hard_masks
from dalorra.posteriors.noise import ModuleTensors, RankNoise, RowMask


class BankSpec(BaseModel):
    """How a bank is drawn: all that must be stored to draw it again.

    Attributes:
        samples: M.
        seed: of the CPU generator.
        sampler: `stratified` or `iid`, see `hard_masks`.
        head: whether the output projection's mask is `sampled` with the rest or `integrated`
            exactly, see `dalorra.forward.llama.head`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(default=10, ge=1)
    seed: int = 0
    sampler: Literal["stratified", "iid"] = "stratified"
    head: Literal["sampled", "integrated"] = "sampled"


class NoiseBank(Protocol):
    """M fixed samples of an adapter's noise."""

    @property
    def samples(self) -> int:
        """M."""
        ...

    @property
    def head_probabilities(self) -> Tensor | None:
        """`[r]`, q(z = 1) of an output projection to be integrated; None: it is sampled."""
        ...

    def noise(self, sample_index: Tensor) -> Sequence[RankNoise]:
        """One `RankNoise` per adapted module, in model order.

        Args:
            sample_index: `[batch or 1, rows or 1]`, the sample of each row; −1: no update.
        """
        ...

    def plain(self, sample: int, modules: Sequence[ModuleTensors]) -> list[tuple[Tensor, Tensor]]:
        """A `[r, d_in]` and B `[d_out, r]` of each module under one sample, float32.

        Raises:
            ConfigError: the update depends on the input, so that no plain LoRA equals it.
        """
        ...


@dataclass(frozen=True, slots=True)
class MaskBank:
    """M samples of the rank masks.

    Attributes:
        masks: `[M, modules, r]` float32 in [0, 1].
        head_probabilities: σ(φ) of the last module `[r]`, when it is integrated.
    """

    masks: Tensor
    head_probabilities: Tensor | None = None

    @classmethod
    def draw(cls, mask_logits: Tensor, spec: BankSpec) -> "MaskBank":
        """Hard samples of Bernoulli(σ(φ)); `mask_logits` φ is `[modules, r]`."""
        sampler: Sampler = spec.sampler
        generator = torch.Generator().manual_seed(spec.seed)
        on = torch.sigmoid(mask_logits.double())
        masks = hard_masks(on, spec.samples, generator, sampler).to(mask_logits.device)
        return cls(masks, on[-1].float() if spec.head == "integrated" else None)

    @classmethod
    def mean(cls, mask_logits: Tensor) -> "MaskBank":
        """One sample, the posterior mean σ(φ): a deterministic adapter."""
        return cls(torch.sigmoid(mask_logits.detach())[None])

    @property
    def samples(self) -> int:
        return self.masks.shape[0]

    def noise(self, sample_index: Tensor) -> list[RankNoise]:
        rows = of_rows(self.masks, sample_index)  # [.., modules, r]
        return [RowMask(mask) for mask in rows.unbind(dim=-2)]

    def plain(self, sample: int, modules: Sequence[ModuleTensors]) -> list[tuple[Tensor, Tensor]]:
        """B · diag(z) · A = (B · diag(z)) · A."""
        masks = self.masks[sample]  # [modules, r]
        return [
            (m["down"].float(), m["up"].float() * z) for m, z in zip(modules, masks, strict=True)
        ]


def of_rows(samples: Tensor, sample_index: Tensor) -> Tensor:
    """The sample of each row, `[M, …]` → `[batch or 1, rows or 1, …]`; zeros where it is −1."""
    return torch.cat([samples, torch.zeros_like(samples[:1])])[sample_index]


def no_integrated_head(spec: BankSpec, what: str) -> None:
    """Refuses a bank whose head is to be integrated where only rank masks can be."""
    if spec.head == "integrated":
        raise ConfigError(f"bank.head: {what} cannot be integrated, say `sampled`")
