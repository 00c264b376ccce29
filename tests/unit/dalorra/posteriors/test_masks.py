import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, kl_divergence

from dalorra.posteriors.masks import bernoulli_kl, hard_masks, prior_logit, relaxed_masks

PRIORS = (0.1, 0.5, 0.9)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_prior_logit_inverts_the_sigmoid():
    for prior in PRIORS:
        assert torch.sigmoid(torch.tensor(prior_logit(prior))).item() == pytest.approx(prior)


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_prior_that_makes_the_kl_infinite_is_refused(prior):
    with pytest.raises(ValueError, match="outside"):
        prior_logit(prior)


@pytest.mark.parametrize("prior", PRIORS)
def test_kl_and_its_gradient_are_zero_at_initialisation(prior):
    logits = torch.full((5, 8), prior_logit(prior), requires_grad=True)
    kl = bernoulli_kl(logits, prior)
    kl.backward()
    assert kl.item() == pytest.approx(0.0, abs=1e-5)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), rtol=0, atol=1e-6)


@pytest.mark.parametrize("prior", PRIORS)
def test_kl_and_its_gradient_are_those_of_torch_distributions(prior):
    values = torch.randn(7, 8, generator=seeded()) * 3
    ours, theirs = (values.clone().requires_grad_() for _ in range(2))
    kl = bernoulli_kl(ours, prior)
    expected = kl_divergence(Bernoulli(logits=theirs.double()), Bernoulli(prior)).sum()
    torch.testing.assert_close(kl.double(), expected, rtol=1e-5, atol=1e-5)
    kl.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_kl_is_a_sum_and_finite_at_certainty():
    infinite = torch.tensor([math.inf, -math.inf])
    assert bernoulli_kl(infinite, 0.25).item() == pytest.approx(-math.log(0.25) - math.log(0.75))
    one = bernoulli_kl(torch.tensor([1.3]), 0.5)
    torch.testing.assert_close(bernoulli_kl(torch.full((3, 4), 1.3), 0.5), 12 * one)


def test_kl_of_bfloat16_logits_is_computed_in_float32():
    assert bernoulli_kl(torch.tensor([1.3], dtype=torch.bfloat16), 0.5).dtype == torch.float32


def test_relaxed_samples_follow_equation_3():
    logits = torch.tensor([[0.3, -1.2], [2.0, 0.0]])
    u = torch.rand((4, 2, 2), generator=seeded(5), dtype=torch.float64)
    expected = torch.sigmoid((logits + u.log() - (1 - u).log()) / 0.7)
    found = relaxed_masks(logits, 0.7, 4, seeded(5))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)


def test_relaxed_samples_tend_to_hard_ones_with_the_right_frequency():
    logits = torch.tensor([[-2.0, -0.5, 0.0, 1.5]])
    soft = relaxed_masks(logits, 0.5, 4000, seeded())
    hard = relaxed_masks(logits, 1e-6, 4000, seeded())
    assert ((soft > 0.01) & (soft < 0.99)).float().mean() > 0.5
    assert (hard - hard.round()).abs().max() < 1e-4
    # τ does not move a sample to the other side of a half: both are the same draw.
    assert torch.equal(hard.round(), soft.round())
    standard_error = (torch.sigmoid(logits) * torch.sigmoid(-logits) / 4000).sqrt()
    assert ((hard.mean(0) - torch.sigmoid(logits)).abs() < 4 * standard_error).all()


def test_relaxed_samples_are_independent_reproducible_and_differentiable():
    logits = torch.zeros(3, 4, requires_grad=True)
    z = relaxed_masks(logits, 0.5, 6, seeded(1))
    assert z.shape == (6, 3, 4)
    assert z.unique().numel() == z.numel()
    assert torch.equal(z, relaxed_masks(logits, 0.5, 6, seeded(1)))
    assert not torch.equal(z, relaxed_masks(logits, 0.5, 6, seeded(2)))
    z.sum().backward()
    torch.testing.assert_close(logits.grad, (z * (1 - z) / 0.5).sum(0).detach())


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="not positive"):
        relaxed_masks(torch.zeros(1, 1), temperature, 1, seeded())


@given(
    p=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12),
    samples=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_stratified_counts_are_the_two_integers_around_mp(p, samples, seed):
    masks = hard_masks(torch.tensor([p], dtype=torch.float64), samples, seeded(seed))
    assert masks.shape == (samples, 1, len(p))
    assert masks.dtype == torch.float32
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    for count, probability in zip(masks.sum(0)[0].tolist(), p, strict=True):
        assert math.floor(samples * probability) <= count <= math.ceil(samples * probability)


@pytest.mark.parametrize("sampler", ["stratified", "iid"])
def test_every_sample_alone_has_the_marginals_of_the_posterior(sampler):
    # 2000 modules with the same four probabilities stand for 2000 independent banks.
    p = torch.tensor([0.05, 0.3, 0.5, 0.93])
    masks = hard_masks(p.expand(2000, 4), 10, seeded(), sampler)
    standard_error = (p * (1 - p) / 2000).sqrt()
    for sample in masks:
        assert ((sample.mean(0) - p).abs() < 5 * standard_error).all()


@pytest.mark.parametrize("sampler", ["stratified", "iid"])
def test_bits_are_independent_of_each_other(sampler):
    masks = hard_masks(torch.full((4000, 2), 0.5), 4, seeded(), sampler)[0]
    both = (masks[:, 0] * masks[:, 1]).mean().item()
    assert both == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 4000))


def test_iid_samples_are_independent_and_stratified_ones_are_not():
    p = torch.full((2000, 4), 0.5)
    counts = {s: hard_masks(p, 10, seeded(), s).sum(0) for s in ("iid", "stratified")}
    assert counts["iid"].var().item() == pytest.approx(10 * 0.25, rel=0.1)
    assert (counts["stratified"] == 5).all()


@pytest.mark.parametrize("sampler", ["stratified", "iid"])
def test_the_seed_alone_decides_the_samples(sampler):
    p = torch.rand(6, 8, generator=seeded(9))
    first = hard_masks(p, 10, seeded(1), sampler)
    assert torch.equal(first, hard_masks(p, 10, seeded(1), sampler))
    assert not torch.equal(first, hard_masks(p, 10, seeded(2), sampler))


@pytest.mark.parametrize("sampler", ["stratified", "iid"])
def test_certainty_is_exact(sampler):
    masks = hard_masks(torch.tensor([[0.0, 1.0]]).expand(50, 2), 10, seeded(), sampler)
    assert (masks[..., 0] == 0).all()
    assert (masks[..., 1] == 1).all()


def test_a_bank_needs_a_sample():
    with pytest.raises(ValueError, match="below 1"):
        hard_masks(torch.ones(1, 1), 0, seeded())
