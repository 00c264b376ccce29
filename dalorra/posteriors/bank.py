"""The fixed samples that an adapter is served with.

A bank is drawn once from a seed, so an answer is reproducible and does not depend on the batch it
ran in; every request sees the same M samples (common random numbers).
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)
from torch import Tensor

from dalorra.errors import AdapterError, ConfigError
from dalorra.posteriors.masks import Sampler, hard_masks
from dalorra.posteriors.noise import ModuleTensors, RankNoise, RowMask


class BankSpec(BaseModel):
    """How a bank is drawn: all that must be stored to draw it again.

    Attributes:
        samples: M.
        seed: of the CPU generator.
        sampler: `stratified` or `iid`, see `hard_masks`; `matched`: a stratified bank that training
            has arranged so that its answers have the posterior's mean and variance, see
            `training.matched_bank`. Before that it is a stratified one.
        head: whether the output projection's mask is `sampled` with the rest or `integrated`
            exactly, see `dalorra.forward.llama.head`.
        masks: bits of a matched bank `[M, modules, r]`, packed, base64; None: not arranged yet.
        error_ratio: how far the mean over the bank is off that over the posterior, in units of the
            error of M independent samples, measured when the adapter was made; 1 where it was not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(default=10, ge=1)
    seed: int = 0
    sampler: Literal["stratified", "iid", "matched"] = "stratified"
    head: Literal["sampled", "integrated"] = "sampled"
    masks: str | None = None
    error_ratio: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)

    @field_validator("masks")
    @classmethod
    def _is_base64(cls, value: str | None) -> str | None:
        try:
            base64.b64decode(value or "", validate=True)
        except binascii.Error as error:
            raise ValueError("the bank's bits are not base64") from error
        return value

    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What training found out is left out where it found nothing out."""
        found: dict[str, Any] = write(self)
        unknown = {"masks": None, "error_ratio": 1.0}
        return {k: v for k, v in found.items() if k not in unknown or v != unknown[k]}

    @property
    def identity(self) -> dict[str, int | str]:
        """What tells this bank from another one; a policy holds for one bank."""
        drawn: dict[str, int | str] = {
            "samples": self.samples,
            "seed": self.seed,
            "sampler": self.sampler,
            "head": self.head,
        }
        if self.masks is None:
            return drawn
        return drawn | {"masks": hashlib.sha256(self.masks.encode()).hexdigest()[:16]}

    def with_masks(self, masks: Tensor) -> Self:
        """The spec of these masks, `[M, modules, r]` of zeros and ones."""
        packed = np.packbits(masks.cpu().numpy().astype(np.uint8))
        return self.model_copy(update={"masks": base64.b64encode(packed.tobytes()).decode()})

    def unpacked(self, modules: int, rank: int) -> Tensor | None:
        """`[M, modules, r]` float32 of zeros and ones; None where the masks are to be drawn.

        Raises:
            AdapterError: they are not those of so many modules and components.
        """
        if self.masks is None:
            return None
        packed = np.frombuffer(base64.b64decode(self.masks), dtype=np.uint8)
        count = self.samples * modules * rank
        if len(packed) != -(-count // 8):
            raise AdapterError(
                f"bank.masks holds {8 * len(packed)} bits, but {self.samples} samples of {modules} "
                f"modules with {rank} components are {count}"
            )
        bits = torch.from_numpy(np.unpackbits(packed, count=count))
        return bits.float().view(self.samples, modules, rank)


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
        """Hard samples of Bernoulli(σ(φ)); `mask_logits` φ is `[modules, r]`.

        Raises:
            AdapterError: the masks of a matched bank are not those of so many modules.
        """
        on = torch.sigmoid(mask_logits.double())
        masks = spec.unpacked(*on.shape)
        if masks is None:
            generator = torch.Generator().manual_seed(spec.seed)
            sampler: Sampler = "iid" if spec.sampler == "iid" else "stratified"
            masks = hard_masks(on, spec.samples, generator, sampler)
        head = on[-1].float() if spec.head == "integrated" else None
        return cls(masks.to(mask_logits.device), head)

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


def refuse_mask_settings(spec: BankSpec, what: str) -> None:
    """Refuses a bank that only learned rank masks can have.

    Raises:
        ConfigError: its head is to be integrated, or its masks are to be matched.
    """
    if spec.sampler == "matched":
        raise ConfigError(f"bank.sampler: {what} cannot be matched, say `stratified`")
    if spec.head == "integrated":
        raise ConfigError(f"bank.head: {what} cannot be integrated, say `sampled`")
