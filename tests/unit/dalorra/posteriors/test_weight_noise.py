"""Gaussian noise on A, and the contextual matrix, against plain loops and closed forms."""

import pytest
import torch
from torch import Tensor, nn

from dalorra.errors import ConfigError
from dalorra.posteriors import ColumnSpaceNoise, ContextualMatrix, GaussianDown, WeightNoiseBank
from dalorra.posteriors.bank import BankSpec, NoiseBank
from dalorra.posteriors.noise import ModuleTensors

RANK, WIDTH, OUT = 4, 6, 9
MANY = 20_000


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def module(seed: int = 0, **more: Tensor) -> ModuleTensors:
    return {"down": random(RANK, WIDTH, seed=seed), "up": random(OUT, RANK, seed=seed + 1), **more}


def blob(seed: int = 0, rho: float = 1.0) -> ModuleTensors:
    return module(seed, rho=rho * random(RANK, WIDTH, seed=seed + 2))


def context(seed: int = 0) -> ModuleTensors:
    tensors = ContextualMatrix(hidden=5).tensors(random(RANK, WIDTH))
    return module(
        seed, **{n: random(*t.shape, seed=seed + i) for i, (n, t) in enumerate(tensors.items())}
    )


INDICES = {
    "[1, rows]": torch.tensor([[0, 0, 2, 1, -1]]),
    "[batch, 1]": torch.tensor([[1], [-1], [2]]),
    "[batch, rows]": torch.tensor([[0, 0, 2, 1, -1], [-1, -1, 1, 1, 1], [2, 2, 2, 2, 2]]),
    "[1, 1]": torch.tensor([[2]]),
    "[1, rows] of one sample": torch.tensor([[1, 1, 1, 1, 1]]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_each_row_has_the_weights_of_its_sample(index: Tensor, dtype: torch.dtype):
    modules = [blob(10 * i) for i in range(2)]
    bank = GaussianDown().bank(modules, BankSpec(samples=3, seed=1))
    x = random(3, 5, WIDTH, seed=7).to(dtype)
    rows = index.expand(3, 5)
    for number, (m, noise) in enumerate(zip(modules, bank.noise(index), strict=True)):
        found = noise(x @ m["down"].to(dtype).T, x)
        assert found.dtype == dtype
        for b in range(3):
            for t in range(5):
                sample = int(rows[b, t])
                expected = torch.zeros(RANK)
                if sample >= 0:
                    down, up = bank.plain(sample, modules)[number]
                    assert torch.equal(up, m["up"])
                    expected = down @ x[b, t].float()
                tolerance = 1e-5 if dtype == torch.float32 else 0.1
                torch.testing.assert_close(found[b, t].float(), expected, rtol=0, atol=tolerance)


def samples_of(bank: NoiseBank, m: ModuleTensors, x: Tensor) -> Tensor:
    """noise(A x) under every sample, `[M, r]`."""
    (noise,) = bank.noise(torch.arange(bank.samples)[:, None])
    down = m["down"].expand(bank.samples, -1, -1)
    return noise((down @ x)[:, None], x.expand(bank.samples, 1, -1))[:, 0]


def assert_covariance(samples: Tensor, variance: Tensor) -> None:
    """That of independent elements, within five standard errors."""
    found = (samples / variance.sqrt()).T.cov()
    torch.testing.assert_close(found, torch.eye(RANK), rtol=0, atol=5 * (2 / MANY) ** 0.5)


def test_blob_samples_have_the_moments_of_its_posterior():
    m, x = blob(), random(WIDTH, seed=3)
    found = samples_of(GaussianDown().bank([m], BankSpec(samples=MANY)), m, x)
    variance = m["rho"].square().square() @ x.square()  # σ² = ρ⁴
    error = (variance / MANY).sqrt()
    assert ((found.mean(dim=0) - m["down"] @ x).abs() < 4.5 * error).all()
    assert_covariance(found, variance)


def test_tfb_noise_is_equally_strong_in_every_direction_of_the_column_space():
    basis = torch.linalg.qr(random(OUT, RANK, seed=1)).Q
    m = {"down": random(RANK, WIDTH), "up": basis * torch.tensor([3.0, 1.0, 0.2, 0.01])}
    x = random(WIDTH, seed=3)
    found = samples_of(ColumnSpaceNoise(scale=0.5).bank([m], BankSpec(samples=MANY)), m, x)
    updates = found @ m["up"].T
    expected = 0.25 * x.square().sum() * basis @ basis.T
    torch.testing.assert_close(updates.T.cov(), expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(updates.mean(0), m["up"] @ (m["down"] @ x), rtol=0.05, atol=0.05)


def test_a_column_of_zeros_carries_no_noise():
    m = module()
    m = {**m, "up": m["up"] * torch.tensor([1.0, 0.0, 1.0, 0.0])}
    bank = ColumnSpaceNoise(scale=0.5).bank([m], BankSpec(samples=3))
    assert isinstance(bank, WeightNoiseBank)
    assert torch.equal(bank.added[0].abs().amax(dim=(0, 2)) > 0, torch.tensor([1, 0, 1, 0]) > 0)


def test_without_noise_both_are_the_mean_adapter():
    m, x = blob(rho=0.0), random(WIDTH, seed=3)
    for posterior in (GaussianDown(), ColumnSpaceNoise(scale=1e-30)):
        bank = posterior.bank([m], BankSpec(samples=3))
        mean = posterior.mean([m])
        expected = samples_of(mean, m, x).expand(3, -1)
        torch.testing.assert_close(samples_of(bank, m, x), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(expected[0], m["down"] @ x)
    assert ColumnSpaceNoise().bank([m], BankSpec(samples=10)).samples == 1


def test_the_bank_is_drawn_from_its_specification_alone():
    def added(seed: int) -> Tensor:
        bank = GaussianDown().bank([blob()], BankSpec(samples=2, seed=seed))
        return bank.added[0]

    torch.manual_seed(99)
    assert torch.equal(added(3), added(3))
    assert not torch.equal(added(3), added(4))
    assert not torch.equal(added(3)[0], added(3)[1])


def test_rho_starts_uniform_below_its_bound():
    rho = GaussianDown(initial_rho=0.05).tensors(torch.empty(50, 400))["rho"]
    assert 0.05 / 2**0.5 - 1e-6 < rho.min() < 0.0355
    assert 0.0499 < rho.max() <= 0.05
    assert abs(rho.mean() - 0.05 * (1 + 0.5**0.5) / 2) < 1e-4


# --- the contextual matrix ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_each_row_has_the_matrix_of_its_own_context(index: Tensor, dtype: torch.dtype):
    m = context()
    bank = ContextualMatrix(hidden=5).bank([m], BankSpec(samples=3, seed=1))
    network = nn.Sequential(nn.Linear(RANK, 5), nn.ReLU(), nn.Linear(5, 2 * RANK * RANK))
    names = ("context_in", "context_in_bias", "context_out", "context_out_bias")
    network.load_state_dict(dict(zip(network.state_dict(), (m[n] for n in names), strict=True)))
    activations = random(3, 5, RANK, seed=7).to(dtype)
    (noise,) = bank.noise(index)
    found = noise(activations, random(3, 5, WIDTH))
    assert found.dtype == dtype
    rows = index.expand(3, 5)
    for b in range(3):
        for t in range(5):
            expected = torch.zeros(RANK)
            if (sample := int(rows[b, t])) >= 0:
                a = activations[b, t].float()
                mean, g = network(a).detach().view(2, RANK, RANK)
                deviation = torch.sigmoid(g) ** 2
                matrix = torch.eye(RANK) + mean + deviation * bank.epsilon[0][sample]
                expected = matrix @ a
            tolerance = 1e-5 if dtype == torch.float32 else 0.02
            torch.testing.assert_close(
                found[b, t].float(), expected, rtol=tolerance, atol=tolerance
            )


def test_contextual_samples_have_the_moments_that_the_context_says():
    m, x = context(), random(WIDTH, seed=3)
    posterior = ContextualMatrix(hidden=5)
    a = m["down"] @ x
    bank = posterior.draw([m], MANY, torch.Generator().manual_seed(0), seen := {})
    found = samples_of(bank, m, x)
    ((mean, log_deviation),) = seen.values()
    variance = (2 * log_deviation[0, 0]).exp() @ a.square()
    expected = a + mean[0, 0] @ a
    torch.testing.assert_close(samples_of(posterior.mean([m]), m, x)[0], expected)
    assert ((found.mean(dim=0) - expected).abs() < 4.5 * (variance / MANY).sqrt()).all()
    assert_covariance(found, variance)


def test_a_new_contextual_matrix_is_near_its_prior():
    down = random(8, 32) / 32**0.5
    posterior = ContextualMatrix(prior_deviation=0.3)
    m = {"down": down, "up": random(OUT, 8), **posterior.tensors(down)}
    bank = posterior.draw([m], 1, torch.Generator().manual_seed(0), seen := {})
    samples_of(bank, m, random(32, seed=5))
    ((mean, log_deviation),) = seen.values()
    assert 0 < mean.abs().max() < 0.15
    torch.testing.assert_close(log_deviation.exp(), torch.full((1, 1, 8, 8), 0.3), rtol=0.3, atol=0)


def test_a_contextual_matrix_is_no_plain_lora():
    bank = ContextualMatrix(hidden=5).bank([context()], BankSpec())
    with pytest.raises(ConfigError, match="depends on the input"):
        bank.plain(0, [context()])
