"""Rank masks that depend on each other through a few shared factors (DALorRA's fourth limitation).

    z_j | ξ ~ Bernoulli(σ(φ_j + λ_jᵀ ξ)),   ξ ~ N(0, I) of F dimensions, one for all modules

With Λ = 0 this is DALorRA. Independent bits average out over many modules; a factor moves them
together, or against each other. A sample of the bank is one ξ and one mask, hence a plain LoRA.
Both are stratified: ξ = Φ⁻¹(v), z = 1[u < σ(φ + Λ ξ)], with `uniforms` v and u.

The marginal of z has no closed form, but its KL from independent Bernoulli(p₀) is, exactly,

    KL(q ‖ p) = E_ξ KL(q(z | ξ) ‖ p) − I(z; ξ)

The first term alone is a bound, since KL is convex, and one that nothing could be learned by: it is
the mean over ξ of DALorRA's KL, as the expected log-likelihood is the mean over ξ of DALorRA's, so
that Λ = 0 at the best φ would be optimal whatever the data are. So the mutual information is taken
off, by what a linear guess G (z − E z) of ξ finds (Barber and Agakov, 2003):

    I(z; ξ) ≥ −½ log det R,   R = E (ξ − G (z − E z)) (ξ − G (z − E z))ᵀ
    G = (I + Λᵀ D Λ)⁻¹ Λᵀ,   D = diag E σ'(φ + Λ ξ)

which is exact to the second order in Λ. Given ξ the bits are independent, so that all of these
means are integrals over ξ alone: Gauss–Hermite quadrature.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dalorra.posteriors.bank import BankSpec, MaskBank, refuse_mask_settings
from dalorra.posteriors.masks import Sampler, bernoulli_kl_between, prior_logit, uniforms
from dalorra.posteriors.noise import ModuleTensors
from dalorra.posteriors.posterior import Posterior

_NODES: Final = 10
"""Of the quadrature, in each dimension."""

_NEAR: Final = 1e-12


class CorrelatedMasks(Posterior):
    """z_j | ξ ~ Bernoulli(σ(φ_j + λ_jᵀ ξ)); a new adapter has Λ = 0.

    Attributes:
        prior: p₀; q starts equal to it. Of no meaning for a trained adapter.
        factors: F.
    """

    prior: float = Field(default=0.5, gt=0.0, lt=1.0)
    factors: int = Field(default=2, ge=1, le=3)

    def tensors(self, down: Tensor) -> dict[str, Tensor]:
        """φ = logit p₀ `[r]`, and Λ = 0 `[r, F]`."""
        return {
            "mask_logits": torch.full_like(down[:, 0], prior_logit(self.prior)),
            "mask_loadings": down.new_zeros((down.shape[0], self.factors)),
        }

    def bank(self, modules: Sequence[ModuleTensors], spec: BankSpec) -> MaskBank:
        refuse_mask_settings(spec, "masks that depend on each other")
        logits, loadings = (x.detach().double().cpu() for x in logits_and_loadings(modules))
        sampler: Sampler = "iid" if spec.sampler == "iid" else "stratified"
        generator = torch.Generator().manual_seed(spec.seed)
        u = uniforms(logits.shape, spec.samples, generator, sampler)
        v = uniforms((self.factors,), spec.samples, generator, sampler)
        xi = torch.special.ndtri(v.clamp(_NEAR, 1.0 - _NEAR))
        masks = (u < torch.sigmoid(given_factors(logits, loadings, xi))).float()
        return MaskBank(masks.to(modules[0]["down"].device))

    def mean(self, modules: Sequence[ModuleTensors]) -> MaskBank:
        """E z = E σ(φ + Λ ξ)."""
        logits, loadings = (x.detach() for x in logits_and_loadings(modules))
        nodes, weights = _quadrature(loadings)
        on = torch.sigmoid(given_factors(logits, loadings, nodes))
        return MaskBank(torch.einsum("n,nmr->mr", weights, on)[None])


def logits_and_loadings(modules: Sequence[ModuleTensors]) -> tuple[Tensor, Tensor]:
    """φ `[modules, r]` and Λ `[modules, r, F]`, differentiable."""
    return (
        torch.stack([module["mask_logits"] for module in modules]),
        torch.stack([module["mask_loadings"] for module in modules]),
    )


def given_factors(logits: Tensor, loadings: Tensor, xi: Tensor) -> Tensor:
    """φ + Λ ξ of each ξ, `[n, F]` → `[n, modules, r]`."""
    return logits + torch.einsum("nf,mrf->nmr", xi, loadings)


def correlated_kl(logits: Tensor, loadings: Tensor, prior: float) -> Tensor:
    """An upper bound of KL(q ‖ p) in nats, see the module; KL(q ‖ p) itself at Λ = 0.

    Args:
        logits: φ, `[modules, r]`.
        loadings: Λ, `[modules, r, F]`.
        prior: p₀.

    Returns:
        A scalar, differentiable.
    """
    nodes, weights = _quadrature(loadings)  # [n, F], [n]
    given = given_factors(logits, loadings, nodes).flatten(1)  # [n, J]
    each = bernoulli_kl_between(given, given.new_tensor(prior_logit(prior))).sum(dim=1)
    on = torch.sigmoid(given)
    variance, mean = weights @ (on * (1.0 - on)), weights @ on  # D, E z: [J]
    flat = loadings.flatten(0, 1)  # [J, F]
    eye = torch.eye(flat.shape[1]).to(flat)
    guess = torch.linalg.solve(eye + flat.T @ (variance[:, None] * flat), flat.T)  # G, [F, J]
    missed = nodes - (on - mean) @ guess.T  # [n, F]
    rest = missed.T @ (weights[:, None] * missed) + (guess * variance) @ guess.T  # R
    return weights @ each + 0.5 * torch.logdet(rest)


def _quadrature(like: Tensor) -> tuple[Tensor, Tensor]:
    """ξ `[n, F]` and the weights `[n]` of E over N(0, I); `like` is Λ `[modules, r, F]`."""
    nodes, weights = _grid(like.shape[-1])
    return nodes.to(like), weights.to(like)


@cache
def _grid(factors: int) -> tuple[Tensor, Tensor]:
    at, weight = np.polynomial.hermite_e.hermegauss(_NODES)
    nodes = torch.tensor(list(product(at.tolist(), repeat=factors)), dtype=torch.float64)
    weights = torch.tensor(list(product(weight.tolist(), repeat=factors)), dtype=torch.float64)
    weights = weights.prod(dim=1)
    return nodes, weights / weights.sum()
