"""Posteriors over which rank components are on: z ⊙ (A x), a `MaskBank` each."""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from dalorra.errors import ConfigError
from dalorra.posteriors.bank import BankSpec, MaskBank, refuse_mask_settings
from dalorra.posteriors.masks import fixed_count_masks, prior_logit
from dalorra.posteriors.noise import ModuleTensors
from dalorra.posteriors.posterior import Posterior


class RankMasks(Posterior):
    """Learned Bernoulli masks: z_j ~ Bernoulli(σ(φ_j)) (DALorRA, section 4).

    Attributes:
        prior: p₀; q starts equal to it. Of no meaning for a trained adapter.
    """

    prior: float = Field(default=0.5, gt=0.0, lt=1.0)

    def tensors(self, down: Tensor) -> dict[str, Tensor]:
        """φ = logit p₀, `[r]`."""
        return {"mask_logits": torch.full_like(down[:, 0], prior_logit(self.prior))}

    def bank(self, modules: Sequence[ModuleTensors], spec: BankSpec) -> MaskBank:
        return MaskBank.draw(_logits(modules), spec)

    def mean(self, modules: Sequence[ModuleTensors]) -> MaskBank:
        return MaskBank.mean(_logits(modules))


class RandomMasks(Posterior):
    """Masks that nothing has learned: exactly `off` of the r components off, at random.

    The paper's ablation (DALorRA, section 5.3, Figure 2).

    Attributes:
        off: K, below r.
    """

    off: int = Field(ge=0)

    def bank(self, modules: Sequence[ModuleTensors], spec: BankSpec) -> MaskBank:
        refuse_mask_settings(spec, "random masks")
        generator = torch.Generator().manual_seed(spec.seed)
        return MaskBank(self.draw(modules, spec.samples, generator))

    def draw(
        self, modules: Sequence[ModuleTensors], samples: int, generator: torch.Generator
    ) -> Tensor:
        """`[samples, modules, r]` of zeros and ones."""
        down = modules[0]["down"]
        shape = (samples, len(modules), down.shape[0])
        return fixed_count_masks(shape, self.off, generator).to(down.device)

    def mean(self, modules: Sequence[ModuleTensors]) -> MaskBank:
        rank = modules[0]["down"].shape[0]
        return _constant(modules, 1.0 - self.off / rank)


class Deterministic(Posterior):
    """Plain LoRA: every component on, one sample."""

    def bank(self, modules: Sequence[ModuleTensors], spec: BankSpec) -> MaskBank:
        refuse_mask_settings(spec, "a plain LoRA")
        return self.mean(modules)

    def mean(self, modules: Sequence[ModuleTensors]) -> MaskBank:
        return _constant(modules, 1.0)


class Ensemble(Posterior):
    """Independent adapters in one: member e is the e-th block of r / E components.

    A stacks the members' A, B their B, side by side, so that a mask picks one adapter of rank r / E
    exactly: B · diag(z_e) · A = B_e A_e. The bank is the members, whatever its size was to be.

    Attributes:
        members: E.
    """

    members: int = Field(ge=2)

    def bank(self, modules: Sequence[ModuleTensors], spec: BankSpec) -> MaskBank:
        refuse_mask_settings(spec, "an ensemble")
        down = modules[0]["down"]
        if down.shape[0] % self.members:
            raise ConfigError(f"{down.shape[0]} components are not {self.members} equal members")
        blocks = torch.eye(self.members, device=down.device)  # [E, E]
        masks = blocks.repeat_interleave(down.shape[0] // self.members, dim=1)  # [E, r]
        return MaskBank(masks[:, None].expand(-1, len(modules), -1))

    def mean(self, modules: Sequence[ModuleTensors]) -> MaskBank:
        """The mean of the members' updates: one adapter, not the mean of their answers."""
        return _constant(modules, 1.0 / self.members)


def _logits(modules: Sequence[ModuleTensors]) -> Tensor:
    return torch.stack([module["mask_logits"] for module in modules]).detach()


def _constant(modules: Sequence[ModuleTensors], value: float) -> MaskBank:
    down = modules[0]["down"]
    return MaskBank(torch.full((1, len(modules), down.shape[0]), value, device=down.device))
