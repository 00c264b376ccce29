"""Bayesian low-rank adaptation by backpropagation (BLoB; Wang et al., 2024).

A is Gaussian, q(A_ij) = N(μ_ij, σ_ij²) with σ = ρ², under the prior N(0, 0.2²); B is a parameter.
The objective is the negative ELBO:

    Σ_n E_q[−log p(y_n | x_n, A)] + KL(q ‖ p)
    KL = Σ_ij log(s / σ_ij) + (σ_ij² + μ_ij²) / (2 s²) − ½

In training ε is drawn once for a step and flipped by random signs, s_n `[d_in]` and t_n `[r]`, of
each sample of each example n (flipout; Wen et al., 2018):

    noise(A x) = A x + t_n ⊙ ((σ ⊙ ε) (s_n ⊙ x)),   (t_n s_nᵀ) ⊙ ε ~ N(0, I) as ε is

Differences from the authors' code:

- Their weight on the KL follows a cycle with mean 1 / M over M = ⌊100 N^(π/8) / batch⌋ steps: 2
  (N = 640) to 10 times (BoolQ) the exact 1 / N, and most of it falls on the last steps of a cycle.
  Ours is exact, at every step and for every batch size, so there is no weight to choose.
- They take an AdamW step on the likelihood and then an SGD step on the KL, which together are no
  step on the sum; ρ is left out of their AdamW altogether. Here one AdamW minimises the negative
  ELBO. ρ has a learning rate of its own; its default moves ρ about as fast as theirs at first,
  where SGD's 0.01 is multiplied by the KL's slope 2 / ρ over M.
- Their signs are drawn for every token, ours for every pass: a token-wise sign is no sample of the
  weights. For the same reason serving draws ε itself and leaves flipout out: M independent ε are
  exact and independent samples of q; signs would make them depend on each other.
- With S > 1 they average logits; the ELBO averages log-likelihoods.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dalorra.posteriors import GaussianDown
from dalorra.posteriors.bank import of_rows
from dalorra.posteriors.noise import ModuleTensors, RankNoise
from training.methods.gaussian import gaussian_kl
from training.methods.method import Method


class Blob(Method):
    """A Gaussian posterior over the elements of A.

    Attributes:
        prior_deviation: of the elements of A under the prior.
        initial_rho: ρ starts uniform between this / √2 and this.
        rho_learning_rate: of ρ, which has no weight decay.
    """

    title = "Gaussian posterior over A, trained with flipout on the exact ELBO (BLoB)"

    name: Literal["blob"] = "blob"
    prior_deviation: float = Field(default=0.2, gt=0.0)
    initial_rho: float = Field(default=0.05, gt=0.0)
    rho_learning_rate: float = Field(default=1e-3, gt=0.0)

    def posterior(self) -> GaussianDown:
        return GaussianDown(initial_rho=self.initial_rho)

    def draw(
        self, modules: Sequence[ModuleTensors], samples: int, generator: torch.Generator
    ) -> "FlipoutBank":
        added, inner, outer = [], [], []
        for module in modules:
            rho = module["rho"]
            rank, width = rho.shape
            epsilon = torch.randn((rank, width), generator=generator).to(rho)
            added.append(rho.square() * epsilon)
            inner.append(_signs((samples, width), generator).to(rho))
            outer.append(_signs((samples, rank), generator).to(rho))
        return FlipoutBank(tuple(added), tuple(inner), tuple(outer))

    def penalty(self, modules: Sequence[ModuleTensors]) -> Tensor:
        """KL(q ‖ p), summed over the elements of every A."""
        parts = [
            gaussian_kl(m["down"], 2.0 * m["rho"].abs().log(), self.prior_deviation).sum()
            for m in modules
        ]
        return torch.stack(parts).sum()

    @property
    def learning_rates(self) -> Mapping[str, float]:
        return {"rho": self.rho_learning_rate}


@dataclass(frozen=True, slots=True, eq=False)
class FlipoutBank:
    """Samples that share one ε and differ in its signs.

    Attributes:
        added: per module σ ⊙ ε, `[r, d_in]`.
        inner: per module the signs of the inputs, `[S, d_in]`.
        outer: per module the signs of the outputs, `[S, r]`.
    """

    added: tuple[Tensor, ...]
    inner: tuple[Tensor, ...]
    outer: tuple[Tensor, ...]

    @property
    def samples(self) -> int:
        return self.inner[0].shape[0]

    @property
    def head_probabilities(self) -> None:
        return None

    def noise(self, sample_index: Tensor) -> list[RankNoise]:
        on = (sample_index >= 0)[..., None]
        return [
            _Flipout(added, of_rows(inner, sample_index), of_rows(outer, sample_index), on)
            for added, inner, outer in zip(self.added, self.inner, self.outer, strict=True)
        ]

    def plain(self, sample: int, modules: Sequence[ModuleTensors]) -> list[tuple[Tensor, Tensor]]:
        """B · (A + t ⊙ (σ ⊙ ε) ⊙ sᵀ)."""
        signed = [
            outer[sample, :, None] * added * inner[sample]
            for added, inner, outer in zip(self.added, self.inner, self.outer, strict=True)
        ]
        return [(m["down"] + noise, m["up"]) for m, noise in zip(modules, signed, strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class _Flipout:
    """`RankNoise` of one module.

    Attributes:
        added: `[r, d_in]`.
        inner: `[batch or 1, rows or 1, d_in]`.
        outer: `[batch or 1, rows or 1, r]`.
        on: `[batch or 1, rows or 1, 1]`, False where a row has no update.
    """

    added: Tensor
    inner: Tensor
    outer: Tensor
    on: Tensor

    def __call__(self, activations: Tensor, inputs: Tensor) -> Tensor:
        return (activations + self.outer * F.linear(inputs * self.inner, self.added)) * self.on


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2.0 * torch.randint(0, 2, shape, generator=generator) - 1.0
