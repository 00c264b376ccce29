"""DALorRA with masks that depend on each other through a few shared Gaussian factors.

    mean over n of E_q(−log p(y_n | x_n, z)) + (1 / N) (E_ξ KL(q(z | ξ) ‖ p) − I₋(z; ξ))

I₋ is a lower bound of the mutual information, so that with hard masks this is an upper bound of the
negative ELBO per training example; `dalorra.posteriors.correlated` has the equations, and says why
the mean KL alone would not do. Relaxed masks make a surrogate of it, as of DALorRA's, which it is
at Λ = 0. There training starts, and the sampled ξ move Λ away from it.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dalorra.posteriors import CorrelatedMasks
from dalorra.posteriors.bank import MaskBank
from dalorra.posteriors.correlated import correlated_kl, given_factors, logits_and_loadings
from dalorra.posteriors.masks import logistic_noise, relaxed
from dalorra.posteriors.noise import ModuleTensors
from training.methods.method import Method


class Correlated(Method):
    """Bernoulli masks with logits φ + Λ ξ.

    Attributes:
        prior: p₀, prior probability that a rank component is on.
        factors: F, dimensions of ξ.
        temperature: τ of the Gumbel-sigmoid.
        mask_learning_rate: of φ and Λ, which have no weight decay.
    """

    title = "Bernoulli masks over rank components that share a few factors (correlated DALorRA)"

    name: Literal["correlated"] = "correlated"
    prior: float = Field(default=0.5, gt=0.0, lt=1.0)
    factors: int = Field(default=2, ge=1, le=3)
    temperature: float = Field(default=0.5, gt=0.0)
    mask_learning_rate: float = Field(default=1e-2, ge=0.0)

    def posterior(self) -> CorrelatedMasks:
        return CorrelatedMasks(prior=self.prior, factors=self.factors)

    def draw(
        self, modules: Sequence[ModuleTensors], samples: int, generator: torch.Generator
    ) -> MaskBank:
        logits, loadings = logits_and_loadings(modules)
        noise = logistic_noise(logits.shape, samples, generator).to(logits)
        xi = torch.randn((samples, self.factors), generator=generator).to(logits)
        return MaskBank(relaxed(given_factors(logits, loadings, xi) + noise, self.temperature))

    def penalty(self, modules: Sequence[ModuleTensors]) -> Tensor:
        """The bound of KL(q ‖ p), over every module and rank together."""
        return correlated_kl(*logits_and_loadings(modules), self.prior)

    @property
    def learning_rates(self) -> Mapping[str, float]:
        return dict.fromkeys(("mask_logits", "mask_loadings"), self.mask_learning_rate)
