"""Rank masks with Gaussian rows of A behind them: spike and slab (DALorRA's third limitation).

    z_j ~ Bernoulli(σ(φ_j)),   a_j | z_j = 1 ~ N(μ_j, σ_j² I),   μ_j the rows of A
    noise(A x) = z ⊙ (A x + σ ⊙ (ε x)),   ε ~ N(0, I) `[r, d_in]`

A component is off (the spike), or on with weights that are uncertain (the slab); where it is off
its weights do not matter. As σ → 0 this is DALorRA. A sample of the bank is one mask and one ε, the
same for every token of a pass, hence a plain LoRA.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from dalorra.posteriors.bank import BankSpec, MaskBank, refuse_mask_settings
from dalorra.posteriors.masks import Sampler, hard_masks, prior_logit
from dalorra.posteriors.noise import ModuleTensors, RankNoise
from dalorra.posteriors.posterior import Posterior
from dalorra.posteriors.weight_noise import WeightNoiseBank


class SpikeSlab(Posterior):
    """Learned Bernoulli masks, and a learned deviation of each row of A.

    Attributes:
        prior: p₀; the masks start equal to it. Of no meaning for a trained adapter.
        prior_deviation: s of the prior N(0, s² I) of a row, where σ starts. Likewise.
    """

    prior: float = Field(default=0.5, gt=0.0, lt=1.0)
    prior_deviation: float = Field(default=0.1, gt=0.0)

    def tensors(self, down: Tensor) -> dict[str, Tensor]:
        """φ = logit p₀ and log σ = log s, `[r]` each."""
        return {
            "mask_logits": torch.full_like(down[:, 0], prior_logit(self.prior)),
            "log_deviation": torch.full_like(down[:, 0], math.log(self.prior_deviation)),
        }

    def bank(self, modules: Sequence[ModuleTensors], spec: BankSpec) -> "SpikeSlabBank":
        refuse_mask_settings(spec, "a spike and slab")
        generator = torch.Generator().manual_seed(spec.seed)
        sampler: Sampler = "iid" if spec.sampler == "iid" else "stratified"
        on = torch.sigmoid(mask_logits(modules).detach().double())
        masks = hard_masks(on, spec.samples, generator, sampler).to(modules[0]["down"].device)
        return SpikeSlabBank.around(masks, modules, generator)

    def mean(self, modules: Sequence[ModuleTensors]) -> MaskBank:
        """E z ⊙ a = σ(φ) ⊙ μ."""
        return MaskBank.mean(mask_logits(modules))


@dataclass(frozen=True, slots=True, eq=False)
class SpikeSlabBank:
    """M samples of the masks, and of what is added to each module's A.

    Attributes:
        masks: `[M, modules, r]` float32 in [0, 1].
        added: per module σ ⊙ ε, `[M, r, d_in]`.
    """

    masks: Tensor
    added: tuple[Tensor, ...]

    @classmethod
    def around(
        cls, masks: Tensor, modules: Sequence[ModuleTensors], generator: torch.Generator
    ) -> "SpikeSlabBank":
        """These masks with slabs that are drawn, differentiable in log σ."""
        deviations = [m["log_deviation"].exp()[:, None].expand_as(m["down"]) for m in modules]
        return cls(masks, WeightNoiseBank.draw(deviations, len(masks), generator).added)

    @property
    def samples(self) -> int:
        return self.masks.shape[0]

    @property
    def head_probabilities(self) -> None:
        return None

    def noise(self, sample_index: Tensor) -> list[RankNoise]:
        masks = MaskBank(self.masks).noise(sample_index)
        slabs = WeightNoiseBank(self.added).noise(sample_index)
        return [_Masked(mask, slab) for mask, slab in zip(masks, slabs, strict=True)]

    def plain(self, sample: int, modules: Sequence[ModuleTensors]) -> list[tuple[Tensor, Tensor]]:
        """B · diag(z) · (A + σ ⊙ ε)."""
        noisy = WeightNoiseBank(self.added).plain(sample, modules)
        return [(down, up * z) for (down, up), z in zip(noisy, self.masks[sample], strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class _Masked:
    """`RankNoise` of a slab behind its mask."""

    mask: RankNoise
    slab: RankNoise

    def __call__(self, activations: Tensor, inputs: Tensor) -> Tensor:
        return self.mask(self.slab(activations, inputs), inputs)


def mask_logits(modules: Sequence[ModuleTensors]) -> Tensor:
    """φ, `[modules, r]`, differentiable."""
    return torch.stack([module["mask_logits"] for module in modules])
