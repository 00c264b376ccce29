"""Spike and slab: nested in DALorRA, its samples are plain LoRAs, its KL that of a simulation."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from dalorra.adapter.layer import module_tensors
from dalorra.posteriors import RankMasks, SpikeSlab
from dalorra.posteriors.bank import BankSpec
from training.methods.dalorra import Dalorra
from training.methods.spike_slab import SpikeAndSlab

RANK, WIDTH, MANY = 3, 5, 40_000


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def module(seed: int = 0) -> dict[str, torch.Tensor]:
    def random(*shape: int, more: int) -> torch.Tensor:
        return torch.randn(shape, generator=seeded(seed + more))

    return {
        "down": random(RANK, WIDTH, more=0),
        "up": random(9, RANK, more=1),
        "mask_logits": random(RANK, more=2),
        "log_deviation": random(RANK, more=3) - 0.5,
    }


@pytest.fixture
def both(beside_dalorra):
    """A spike and slab with σ = 0, and DALorRA with the same φ, A and B."""
    return beside_dalorra(SpikeAndSlab(), "log_deviation", -math.inf)


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
def test_without_deviation_its_likelihood_is_that_of_dalorra(both, loss_of, scope):
    nested, dalorra = (
        loss_of(method(prior=0.3, samples=2), model, scope=scope).nll
        for method, model in zip((SpikeAndSlab, Dalorra), both, strict=True)
    )
    assert torch.equal(nested, dalorra)


@pytest.mark.parametrize("sampler", ["stratified", "iid"])
def test_without_deviation_its_bank_is_that_of_dalorra(both, sampler):
    modules, spec = module_tensors(both[0]), BankSpec(samples=7, seed=4, sampler=sampler)
    banks = [posterior.bank(modules, spec) for posterior in (SpikeSlab(), RankMasks())]
    means = [posterior.mean(modules).masks for posterior in (SpikeSlab(), RankMasks())]
    assert torch.equal(*means)
    index = torch.tensor([[0, 3, -1], [6, 6, 2]])
    for number, (m, *noise) in enumerate(
        zip(modules, *(b.noise(index) for b in banks), strict=True)
    ):
        x = torch.randn(2, 3, m["down"].shape[1], generator=seeded(number))
        a = x @ m["down"].T
        assert torch.equal(noise[0](a, x), noise[1](a, x))


def test_a_sample_has_a_mask_and_a_slab_of_its_own():
    m = module()
    bank = SpikeSlab().bank([m], BankSpec(samples=MANY, seed=1, sampler="iid"))
    found = torch.stack([bank.plain(s, [m])[0][0] for s in range(2000)]) - m["down"]
    deviation = m["log_deviation"].exp()[:, None].expand(RANK, WIDTH)
    standard = (found / deviation).flatten(1)
    torch.testing.assert_close(
        standard.T.cov(), torch.eye(RANK * WIDTH), rtol=0, atol=5 * math.sqrt(2 / 2000)
    )
    x = torch.randn(WIDTH, generator=seeded(9))
    (noise,) = bank.noise(torch.arange(MANY)[:, None])
    rows = noise((m["down"] @ x).expand(MANY, 1, -1), x.expand(MANY, 1, -1))[:, 0]
    p, mean = torch.sigmoid(m["mask_logits"]), m["down"] @ x
    second = p * (mean.square() + (deviation[:, 0] * x.norm()).square())
    variance = second - (p * mean).square()
    assert ((rows.mean(0) - p * mean).abs() < 4.5 * (variance / MANY).sqrt()).all()
    torch.testing.assert_close(rows.var(0), variance, rtol=0.05, atol=0)
    share = (rows == 0.0).float().mean(0)
    torch.testing.assert_close(share, 1.0 - p, rtol=0, atol=4.5 * 0.5 / math.sqrt(MANY))


def test_masks_and_slabs_are_independent_and_drawn_from_the_specification_alone():
    modules = [module(), module(5)]

    def drawn(**spec):
        return SpikeSlab().bank(modules, BankSpec(samples=400, **spec))

    torch.manual_seed(99)
    first, again, other = drawn(seed=3), drawn(seed=3), drawn(seed=4)
    assert torch.equal(first.masks, again.masks)
    assert all(map(torch.equal, first.added, again.added))
    assert not torch.equal(first.masks, other.masks)
    assert not torch.equal(first.added[0], other.added[0])
    together = torch.cat([first.masks.flatten(1), *(a.flatten(1) for a in first.added)], dim=1)
    correlation = together.T.corrcoef() - torch.eye(together.shape[1])
    assert correlation.abs().max() < 5.5 / math.sqrt(400)


# --- the KL ---


def test_the_kl_is_that_of_its_simulation():
    """The mean of log q − log p over draws of (z, a); a row that is off has its prior's law."""
    m, method = module(), SpikeAndSlab(prior=0.3, prior_deviation=0.8)
    q_mask, p_mask = Bernoulli(logits=m["mask_logits"]), Bernoulli(torch.full((RANK,), 0.3))
    q_row = Normal(m["down"], m["log_deviation"].exp()[:, None].expand(RANK, WIDTH))
    p_row = Normal(0.0, 0.8)
    torch.manual_seed(0)
    z, a = q_mask.sample((MANY,)), q_row.sample((MANY,))
    ratio = q_mask.log_prob(z) - p_mask.log_prob(z)
    ratio = ratio + z * (q_row.log_prob(a) - p_row.log_prob(a)).sum(-1)
    total = ratio.sum(dim=1)
    error = (total.std() / math.sqrt(MANY)).item()
    found = method.penalty([m])
    assert found.item() == pytest.approx(total.mean().item(), abs=4.5 * error)
    expected = kl_divergence(q_mask, p_mask) + q_mask.probs * kl_divergence(q_row, p_row).sum(-1)
    torch.testing.assert_close(found, expected.sum())


def test_the_kl_is_summed_over_the_modules_and_divided_by_the_training_set(adapted, loss_of):
    method = SpikeAndSlab(prior=0.3)
    model = adapted(method)
    modules, loss = module_tensors(model), loss_of(method, model)
    each = torch.stack([method.penalty([m]) for m in modules])
    torch.testing.assert_close(loss.penalty, each.sum().detach(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(loss.total, loss.nll + loss.penalty / 640)


def test_a_row_that_is_off_costs_nothing_and_one_at_the_prior_neither():
    method, m = SpikeAndSlab(prior=0.3, prior_deviation=0.8), module()
    off = {**m, "mask_logits": torch.full((RANK,), -60.0)}
    expected = -RANK * math.log1p(-0.3)
    assert method.penalty([off]).item() == pytest.approx(expected, rel=1e-5)
    new = SpikeSlab(prior=0.3, prior_deviation=0.8).tensors(m["down"])
    at_prior = {"down": torch.zeros(RANK, WIDTH), "up": m["up"], **new}
    assert method.penalty([at_prior]).item() == pytest.approx(0.0, abs=1e-5)


def test_the_gradient_of_the_deviations_is_that_of_their_noise():
    m = {name: tensor.requires_grad_() for name, tensor in module().items()}
    bank = SpikeAndSlab().draw([m], 4, seeded(0))
    x = torch.randn(4, 1, WIDTH, generator=seeded(9))
    (noise,) = bank.noise(torch.arange(4)[:, None])
    noise(x @ m["down"].T, x).sum().backward()
    expected = (bank.masks[:, 0] * (bank.added[0] @ x.mT)[..., 0]).sum(0)  # d σ / d log σ = σ
    torch.testing.assert_close(m["log_deviation"].grad, expected.detach())
