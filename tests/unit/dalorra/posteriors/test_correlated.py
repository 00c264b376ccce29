"""Masks with shared factors: nested in DALorRA, law and KL against dense integration."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from dalorra.errors import ConfigError
from dalorra.posteriors import CorrelatedMasks, RankMasks
from dalorra.posteriors.bank import BankSpec
from dalorra.posteriors.correlated import correlated_kl
from dalorra.posteriors.masks import bernoulli_kl
from dalorra.posteriors.noise import ModuleTensors

RANK, MANY = 3, 40_000
POINTS = torch.linspace(-9.0, 9.0, 2001, dtype=torch.float64)
DENSITY = torch.exp(-(POINTS**2) / 2) / torch.exp(-(POINTS**2) / 2).sum()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def modules(factors: int, size: float = 1.0) -> list[ModuleTensors]:
    return [
        {
            "down": random(RANK, 6, seed=10 * i),
            "up": random(9, RANK, seed=10 * i + 1),
            "mask_logits": random(RANK, seed=10 * i + 2),
            "mask_loadings": size * random(RANK, factors, seed=10 * i + 3),
        }
        for i in range(2)
    ]


def test_it_starts_as_dalorra():
    down = random(RANK, 6)
    tensors = CorrelatedMasks(prior=0.3, factors=3).tensors(down)
    assert torch.equal(tensors["mask_logits"], RankMasks(prior=0.3).tensors(down)["mask_logits"])
    assert torch.equal(tensors["mask_loadings"], torch.zeros(RANK, 3))


@pytest.mark.parametrize("sampler", ["stratified", "iid"])
def test_without_loadings_its_bank_is_that_of_dalorra(sampler):
    spec = BankSpec(samples=7, seed=4, sampler=sampler)
    nested, plain = CorrelatedMasks(factors=2), RankMasks()
    own = modules(2, size=0.0)
    assert torch.equal(nested.bank(own, spec).masks, plain.bank(own, spec).masks)
    torch.testing.assert_close(nested.mean(own).masks, plain.mean(own).masks, rtol=0, atol=1e-6)


def test_a_bank_has_the_moments_of_its_law():
    """One factor for all modules: covariances by dense integration over it."""
    own = modules(1, size=1.5)
    masks = CorrelatedMasks(factors=1).bank(own, BankSpec(samples=MANY, sampler="iid")).masks
    logits = torch.cat([m["mask_logits"] for m in own]).double()
    loadings = torch.cat([m["mask_loadings"] for m in own])[:, 0].double()
    on = torch.sigmoid(logits + POINTS[:, None] * loadings)  # [points, J]
    mean = DENSITY @ on
    covariance = (on - mean).T @ (DENSITY[:, None] * (on - mean))
    covariance += torch.diag(DENSITY @ (on * (1.0 - on)))
    found = masks.flatten(1).double()
    tolerance = 4.5 / math.sqrt(MANY)
    torch.testing.assert_close(found.mean(dim=0), mean, rtol=0, atol=0.5 * tolerance)
    torch.testing.assert_close(found.T.cov(), covariance, rtol=0, atol=0.5 * tolerance)
    across = covariance[:RANK, RANK:]
    assert across.abs().max() > 0.05, "modules depend on each other"
    exact = CorrelatedMasks(factors=1).mean(own).masks.flatten()
    torch.testing.assert_close(exact.double(), mean, rtol=0, atol=1e-4)


def test_the_factors_are_spread_evenly_over_a_bank():
    """With bits that ξ alone decides, each is on in as many samples as ξ is above its threshold."""
    own = modules(1)
    for m in own:
        m["mask_logits"] = torch.zeros(RANK)
        m["mask_loadings"] = torch.full((RANK, 1), 1e6)
    for seed in range(5):
        masks = CorrelatedMasks(factors=1).bank(own, BankSpec(samples=10, seed=seed)).masks
        assert torch.equal(masks, masks[:, :1, :1].expand_as(masks))
        assert masks[:, 0, 0].sum() == 5


def test_the_bank_is_drawn_from_its_specification_alone():
    def masks(**spec) -> Tensor:
        return CorrelatedMasks().bank(modules(2), BankSpec(samples=9, **spec)).masks

    torch.manual_seed(99)
    assert torch.equal(masks(seed=3), masks(seed=3))
    assert not torch.equal(masks(seed=3), masks(seed=4))
    assert not torch.equal(masks(seed=3), masks(seed=3, sampler="iid"))


@pytest.mark.parametrize("setting", [{"sampler": "matched"}, {"head": "integrated"}])
def test_what_needs_independent_masks_is_refused(setting):
    with pytest.raises(ConfigError, match="masks that depend on each other cannot be"):
        CorrelatedMasks().bank(modules(2), BankSpec(**setting))


# --- the KL ---


def enumerated(logits: Tensor, loadings: Tensor, prior: float) -> tuple[float, float]:
    """KL(q ‖ p) over all 2^J masks, and E_ξ KL(q(z | ξ) ‖ p), by dense integration over one ξ."""
    given_xi = logits.double() + POINTS[:, None] * loadings.double()  # [points, J]
    masks = torch.tensor(list(product((0.0, 1.0), repeat=len(logits))), dtype=torch.float64)
    log_q = Bernoulli(logits=given_xi[:, None]).log_prob(masks).sum(dim=-1)  # [points, 2^J]
    q = DENSITY @ log_q.exp()
    log_p = Bernoulli(torch.tensor(prior, dtype=torch.float64)).log_prob(masks).sum(dim=-1)
    p = torch.full_like(given_xi, prior)
    each = kl_divergence(Bernoulli(logits=given_xi), Bernoulli(p)).sum(dim=-1)
    return (q * (q.log() - log_p)).sum().item(), (DENSITY @ each).item()


@given(
    numbers=st.lists(st.tuples(st.floats(-3, 3), st.floats(-2, 2)), min_size=1, max_size=6),
    prior=st.sampled_from([0.1, 0.5, 0.8]),
)
@settings(max_examples=60, deadline=None)
def test_the_kl_is_bounded_and_more_closely_than_by_its_mean_over_the_factors(numbers, prior):
    logits, loadings = torch.tensor(numbers, dtype=torch.float32).T
    exact, mean = enumerated(logits, loadings, prior)
    bound = correlated_kl(logits[None], loadings[None, :, None], prior).item()
    assert exact - 2e-3 <= bound <= mean + 2e-3  # of quadrature


def test_the_bound_is_exact_to_the_second_order():
    logits, loadings = random(6, seed=1), random(6, seed=2)
    apart, at_zero = {}, enumerated(logits, 0 * loadings, 0.3)[0]
    for size in (0.1, 0.2):
        exact, mean = enumerated(logits, size * loadings, 0.3)
        bound = correlated_kl(logits[None], (size * loadings)[None, :, None], 0.3).item()
        assert abs(bound - exact) < 0.01 * (mean - exact)
        apart[size] = mean - exact
    assert 3.5 < apart[0.2] / apart[0.1] < 4.5
    found = correlated_kl(logits[None], torch.zeros(1, 6, 1), 0.3).item()
    assert found == pytest.approx(at_zero, rel=1e-5)


@pytest.mark.parametrize("factors", [1, 2, 3])
def test_without_loadings_the_kl_is_that_of_dalorra(factors):
    logits = random(4, 5).requires_grad_()
    loadings = torch.zeros(4, 5, factors, requires_grad=True)
    found, expected = correlated_kl(logits, loadings, 0.3), bernoulli_kl(logits, 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    gradients = torch.autograd.grad(found, [logits, loadings])
    torch.testing.assert_close(gradients[0], torch.autograd.grad(expected, logits)[0])
    assert gradients[1].abs().max() < 1e-6


def test_a_rotation_of_the_factors_changes_nothing():
    logits, loadings = random(4, 5), random(4, 5, 2, seed=1)
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    found = correlated_kl(logits, loadings @ turn, 0.3)
    torch.testing.assert_close(found, correlated_kl(logits, loadings, 0.3), rtol=1e-3, atol=0)
    one = correlated_kl(logits, loadings[..., :1], 0.3)
    more = torch.cat([loadings[..., :1], torch.zeros(4, 5, 2)], dim=-1)
    torch.testing.assert_close(correlated_kl(logits, more, 0.3), one, rtol=1e-5, atol=0)


def test_its_gradient_is_that_of_differences():
    logits, loadings = random(2, 2).double(), random(2, 2, 2, seed=1).double()
    assert torch.autograd.gradcheck(
        lambda a, b: correlated_kl(a, b, 0.3),
        (logits.requires_grad_(), loadings.requires_grad_()),
    )
