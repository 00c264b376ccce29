"""DALorRA with a Gaussian posterior over the rows of A: spike and slab.

Rank-level and weight-level uncertainty in one, see `dalorra.posteriors.spike_slab`. B is a
parameter. With the prior z_j ~ Bernoulli(p₀), a_j ~ N(0, s² I) the objective is

    mean over n of E_q(−log p(y_n | x_n, A, z)) + KL(q ‖ p) / N
    KL = Σ_j KL(σ(φ_j) ‖ p₀) + σ(φ_j) KL(N(μ_j, σ_j² I) ‖ N(0, s² I))

where the weights of a component that is off have their prior's law and cost nothing (Titsias and
Lázaro-Gredilla, 2011). With hard masks this is the exact negative ELBO per training example;
relaxed ones make a surrogate of it. So A, which DALorRA has for nothing, pays for what it knows,
and a component that does not earn what its row costs is switched off.

q starts at the prior but for the means of the rows, which are LoRA's initial A.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dalorra.posteriors import SpikeSlab, SpikeSlabBank
from dalorra.posteriors.masks import bernoulli_kl, relaxed_masks
from dalorra.posteriors.noise import ModuleTensors
from dalorra.posteriors.spike_slab import mask_logits
from training.methods.gaussian import gaussian_kl
from training.methods.method import Method


class SpikeAndSlab(Method):
    """Bernoulli masks, with a Gaussian row of A behind each.

    Attributes:
        prior: p₀, prior probability that a rank component is on.
        prior_deviation: s, of the elements of A under the prior.
        temperature: τ of the Gumbel-sigmoid.
        mask_learning_rate: of φ, which has no weight decay.
        deviation_learning_rate: of log σ, likewise.
    """

    title = "Bernoulli masks over rank components with Gaussian rows of A (spike and slab DALorRA)"

    name: Literal["spike_slab"] = "spike_slab"
    prior: float = Field(default=0.5, gt=0.0, lt=1.0)
    prior_deviation: float = Field(default=0.1, gt=0.0)
    temperature: float = Field(default=0.5, gt=0.0)
    mask_learning_rate: float = Field(default=1e-2, ge=0.0)
    deviation_learning_rate: float = Field(default=1e-2, ge=0.0)

    def posterior(self) -> SpikeSlab:
        return SpikeSlab(prior=self.prior, prior_deviation=self.prior_deviation)

    def draw(
        self, modules: Sequence[ModuleTensors], samples: int, generator: torch.Generator
    ) -> SpikeSlabBank:
        masks = relaxed_masks(mask_logits(modules), self.temperature, samples, generator)
        return SpikeSlabBank.around(masks, modules, generator)

    def penalty(self, modules: Sequence[ModuleTensors]) -> Tensor:
        """KL(q ‖ p), summed over every module and rank."""
        slabs = [
            gaussian_kl(m["down"], m["log_deviation"][:, None], self.prior_deviation).sum(dim=1)
            for m in modules
        ]
        logits = mask_logits(modules)
        on = torch.sigmoid(logits)  # [modules, r]
        return bernoulli_kl(logits, self.prior) + (on * torch.stack(slabs)).sum()

    @property
    def learning_rates(self) -> Mapping[str, float]:
        return {
            "mask_logits": self.mask_learning_rate,
            "log_deviation": self.deviation_learning_rate,
        }
