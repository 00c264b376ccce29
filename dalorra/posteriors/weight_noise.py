"""Gaussian noise on the elements of A: what BLoB learns and TFB adds to a trained adapter.

    noise(A x) = A x + (σ ⊙ ε_m) x = (A + σ ⊙ ε_m) x,   ε_m ~ N(0, I) `[r, d_in]`

A sample of the bank is one set of weights, the same for every token of a pass. That is an exact
sample of the posterior, and a plain LoRA.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dalorra.posteriors.bank import BankSpec, MaskBank, of_rows, refuse_mask_settings
from dalorra.posteriors.noise import ModuleTensors, RankNoise
from dalorra.posteriors.posterior import Posterior


class GaussianDown(Posterior):
    """A has independent Gaussian elements, N(A_ij, σ_ij²) with σ = ρ² (BLoB, section 3.1).

    Attributes:
        initial_rho: ρ starts uniform between this / √2 and this. Of no meaning for a trained
            adapter.
    """

    initial_rho: float = Field(default=0.05, gt=0.0)

    def tensors(self, down: Tensor) -> dict[str, Tensor]:
        """ρ, `[r, d_in]`."""
        low = self.initial_rho / math.sqrt(2.0)
        return {"rho": torch.empty_like(down).uniform_(low, self.initial_rho)}

    def bank(self, modules: Sequence[ModuleTensors], spec: BankSpec) -> "WeightNoiseBank":
        refuse_mask_settings(spec, "Gaussian noise")
        deviations = [m["rho"].detach().square() for m in modules]
        generator = torch.Generator().manual_seed(spec.seed)
        return WeightNoiseBank.draw(deviations, spec.samples, generator)

    def mean(self, modules: Sequence[ModuleTensors]) -> MaskBank:
        """σ = 0."""
        return _no_noise(modules)


class ColumnSpaceNoise(Posterior):
    """σ_ij = σ_q / ‖B_i‖, for an adapter whose B has orthogonal columns (TFB, section 3).

    With B = U diag(d) and d_i = ‖B_i‖ the noise of B·A is U·(σ_q ε): of equal strength σ_q in
    every direction of the column space of B. A column that is zero has no noise to carry.

    Attributes:
        scale: σ_q; 0 is the plain LoRA, one sample.
    """

    scale: float = Field(default=0.0, ge=0.0)

    def bank(
        self, modules: Sequence[ModuleTensors], spec: BankSpec
    ) -> "WeightNoiseBank | MaskBank":
        refuse_mask_settings(spec, "Gaussian noise")
        if self.scale == 0.0:
            return _no_noise(modules)
        deviations = [self._deviation(m) for m in modules]
        generator = torch.Generator().manual_seed(spec.seed)
        return WeightNoiseBank.draw(deviations, spec.samples, generator)

    def mean(self, modules: Sequence[ModuleTensors]) -> MaskBank:
        """σ = 0."""
        return _no_noise(modules)

    def _deviation(self, module: ModuleTensors) -> Tensor:
        norms = module["up"].detach().norm(dim=0)  # [r]
        deviations = torch.where(norms > 0.0, self.scale / norms, 0.0)
        return deviations[:, None].expand_as(module["down"])


@dataclass(frozen=True, slots=True, eq=False)
class WeightNoiseBank:
    """M samples of what is added to each module's A.

    Attributes:
        added: per module σ ⊙ ε, `[M, r, d_in]`.
    """

    added: tuple[Tensor, ...]

    @classmethod
    def draw(
        cls, deviations: Sequence[Tensor], samples: int, generator: torch.Generator
    ) -> "WeightNoiseBank":
        """Samples of noise with these standard deviations, `[r, d_in]` per module."""
        return cls(
            tuple(
                torch.randn((samples, *sigma.shape), generator=generator).to(sigma.device) * sigma
                for sigma in deviations
            )
        )

    @property
    def samples(self) -> int:
        return self.added[0].shape[0]

    @property
    def head_probabilities(self) -> None:
        return None

    def noise(self, sample_index: Tensor) -> list[RankNoise]:
        on = (sample_index >= 0)[..., None]  # [batch or 1, rows or 1, 1]
        if sample_index.shape[0] > 1 and sample_index.shape[1] == 1:
            return [_SequenceNoise(of_rows(a, sample_index[:, 0]), on) for a in self.added]
        used, place = sample_index.clamp_min(0).unique(return_inverse=True)
        return [_RowNoise(a[used], place[..., None, None], on) for a in self.added]

    def plain(self, sample: int, modules: Sequence[ModuleTensors]) -> list[tuple[Tensor, Tensor]]:
        """B · (A + σ ⊙ ε)."""
        return [
            (m["down"].float() + added[sample], m["up"].float())
            for m, added in zip(modules, self.added, strict=True)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class _SequenceNoise:
    """Every sequence under a sample of its own, as in `all_tokens`: one batched product.

    Attributes:
        added: `[batch, r, d_in]`.
        on: `[batch, 1, 1]`, False for no update at all.
    """

    added: Tensor
    on: Tensor

    def __call__(self, activations: Tensor, inputs: Tensor) -> Tensor:
        return (activations + inputs @ self.added.mT.to(inputs.dtype)) * self.on


@dataclass(frozen=True, slots=True, eq=False)
class _RowNoise:
    """Every row under a sample of its own, as those of the cues.

    One product with all U samples and a choice among the results: U · r columns are few beside the
    d_out of the layer, and rows of a batch share it whatever their samples.

    Attributes:
        added: `[U, r, d_in]`, the samples that are in use.
        place: `[batch or 1, rows or 1, 1, 1]`, which of them a row takes.
        on: `[batch or 1, rows or 1, 1]`, False for no update at all.
    """

    added: Tensor
    place: Tensor
    on: Tensor

    def __call__(self, activations: Tensor, inputs: Tensor) -> Tensor:
        added = self.added.flatten(0, 1).to(inputs.dtype)  # [U · r, d_in]
        all_samples = F.linear(inputs, added).unflatten(-1, self.added.shape[:2])
        own: Tensor = all_samples.take_along_dim(self.place, dim=-2).squeeze(-2)  # [.., rows, r]
        return (activations + own) * self.on


def _no_noise(modules: Sequence[ModuleTensors]) -> MaskBank:
    down = modules[0]["down"]
    return MaskBank(torch.ones((1, len(modules), down.shape[0]), device=down.device))
