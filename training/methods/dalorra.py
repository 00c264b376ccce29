"""DALorRA: learned Bernoulli masks over the rank components.

    mean over n of E_q(−log p(y_n | x_n, z)) + (1 / N) Σ KL(σ(φ) ‖ p₀)                   (Eq. 4)

With hard masks this is the exact negative ELBO per training example; with those that it is trained
with, relaxed so that φ has a gradient (Eq. 3), a surrogate of it. Answers always use hard ones.

The posterior, its KL and its relaxed samples are in `posteriors.masks`. The paper leaves open p₀,
τ, S and the weight decay of φ, which is zero here: decay would pull every σ(φ) to one half.

A and B are parameters that the ELBO has for nothing, all but 488 of 859,112 numbers. With a prior
N(0, 1 / λ) on their elements the maximum of its bound has −log p(A, B) beside the KL, which is
½ λ (‖A‖² + ‖B‖²); the paper's λ is 0.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dalorra.posteriors import RankMasks
from dalorra.posteriors.bank import MaskBank
from dalorra.posteriors.masks import bernoulli_kl, relaxed_masks
from dalorra.posteriors.noise import ModuleTensors
from training.methods.method import Method
from training.methods.plain import gaussian_penalty


class Dalorra(Method):
    """The variational posterior over masks. p₀ and τ are not given in the paper.

    Attributes:
        prior: p₀, prior probability that a rank component is on.
        temperature: τ of the Gumbel-sigmoid.
        noise_per: Algorithm 1 draws one set of masks for a mini-batch (`batch`).
        mask_learning_rate: of φ, which has no weight decay; 0: φ stays at the prior.
        prior_precision: λ, of the elements of A and B; 0: they have no prior.
    """

    title = "learned Bernoulli masks over rank components (DALorRA)"

    name: Literal["dalorra"] = "dalorra"
    prior: float = Field(default=0.5, gt=0.0, lt=1.0)
    temperature: float = Field(default=0.5, gt=0.0)
    mask_learning_rate: float = Field(default=1e-2, ge=0.0)
    prior_precision: float = Field(default=0.0, ge=0.0, exclude_if=lambda value: value == 0.0)

    def posterior(self) -> RankMasks:
        return RankMasks(prior=self.prior)

    def draw(
        self, modules: Sequence[ModuleTensors], samples: int, generator: torch.Generator
    ) -> MaskBank:
        return MaskBank(relaxed_masks(_logits(modules), self.temperature, samples, generator))

    def penalty(self, modules: Sequence[ModuleTensors]) -> Tensor:
        """KL(q ‖ p), summed over every module and rank (Eq. 4), and −log p(A, B) where λ > 0."""
        kl = bernoulli_kl(_logits(modules), self.prior)
        return kl + gaussian_penalty(modules, self.prior_precision) if self.prior_precision else kl

    @property
    def learning_rates(self) -> Mapping[str, float]:
        return {"mask_logits": self.mask_learning_rate}


def _logits(modules: Sequence[ModuleTensors]) -> Tensor:
    return torch.stack([module["mask_logits"] for module in modules])  # [modules, r]
