"""BLoB, TFB and C-LoRA in training: their divergences, their noise, their search."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from dalorra.adapter.directory import read_adapter
from dalorra.adapter.layer import attach, lora_config, module_tensors, stochastic_layers
from dalorra.forward.reference_rows import pack
from dalorra.posteriors import ColumnSpaceNoise, ContextBank
from dalorra.prompts import Prompt
from tests.tiny import MODULES, tiny_llama
from training.config import read_config
from training.methods.blob import Blob, FlipoutBank
from training.methods.c_lora import CLora
from training.methods.gaussian import gaussian_kl
from training.methods.tfb import Tfb, largest_allowed, to_singular_form
from training.prompt_cache import PromptCache
from training.run import Run


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_divergence_is_that_of_torch():
    mean = torch.randn(50, generator=seeded(0), dtype=torch.double)
    log_deviation = torch.randn(50, generator=seeded(1), dtype=torch.double)
    expected = kl_divergence(Normal(mean, log_deviation.exp()), Normal(0.0, 0.2))
    torch.testing.assert_close(gaussian_kl(mean, log_deviation, 0.2), expected)


# --- BLoB ---


def test_the_kl_of_blob_is_summed_over_every_a_and_divided_by_the_training_set(adapted, loss_of):
    method = Blob(prior_deviation=0.3)
    model = adapted(method)
    expected = sum(
        kl_divergence(Normal(m["down"].double(), m["rho"].double() ** 2), Normal(0.0, 0.3)).sum()
        for m in module_tensors(model)
    )
    loss = loss_of(method, model)
    assert loss.penalty.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.total.item() == pytest.approx((loss.nll + loss.penalty / 640).item(), rel=1e-6)


def test_flipout_rows_are_the_plain_lora_of_their_signs(adapted):
    method = Blob()
    modules = module_tensors(adapted(method))
    bank = method.draw(modules, 3, seeded(0))
    assert isinstance(bank, FlipoutBank)
    index = torch.tensor([[0, 2, -1], [1, 1, 2]])
    plain = [bank.plain(m, modules) for m in range(3)]
    for i, (module, noise) in enumerate(zip(modules, bank.noise(index), strict=True)):
        x = torch.randn(2, 3, module["down"].shape[1], generator=seeded(i))
        found = noise(x @ module["down"].T, x)
        for b, row in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2)):
            down, _ = plain[int(index[b, row])][i]
            torch.testing.assert_close(found[b, row], down @ x[b, row])
        assert (found[0, 2] == 0).all()


def test_flipout_has_the_moments_of_independent_noise():
    generator, rho = seeded(0), torch.tensor([[0.5, 1.0, 1.5], [2.0, 0.2, 1.0]])
    module = {"down": torch.zeros(2, 3), "up": torch.zeros(4, 2), "rho": rho}
    draws = []
    for _ in range(4000):
        bank = Blob().draw([module], 2, generator)
        draws.append(torch.stack([bank.plain(m, [module])[0][0] for m in range(2)]))
    noise = torch.stack(draws).flatten(2) / rho.square().flatten()  # [4000, 2, r · d_in]
    covariance = noise.flatten(1).T.cov()  # of both samples' elements
    torch.testing.assert_close(covariance, torch.eye(12), rtol=0, atol=0.12)
    assert noise.mean(dim=0).abs().max() < 4.5 / math.sqrt(4000)
    fourth = noise.pow(4).mean(dim=(0, 1))
    torch.testing.assert_close(fourth, torch.full((6,), 3.0), rtol=0.25, atol=0)


def test_blob_without_deviation_is_the_mean_adapter(adapted, loss_of):
    method = Blob()
    model = adapted(method)
    with torch.no_grad():
        for layer in stochastic_layers(model).values():
            layer.posterior_tensor("rho").fill_(1e-12)
    noisy, plain = loss_of(method, model), loss_of(Tfb(), model)  # TFB trains without noise
    torch.testing.assert_close(noisy.nll, plain.nll, rtol=0, atol=1e-6)


# --- C-LoRA ---


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
def test_the_kl_of_c_lora_is_each_examples_own_without_padding(scope, samples):
    method = CLora(prior_deviation=0.3, samples=samples)
    prompts = [Prompt((11, 12, 13), (91, 92)), Prompt((21,), (91, 92))]
    rows = pack(prompts, torch.arange(2 * samples).view(2, samples), scope)
    shapes = [(*rows.input_ids.shape, 2, 2), (2, samples, 2, 2)]  # a layer's, the head's
    seen = [
        (torch.randn(shape, generator=seeded(i)), torch.randn(shape, generator=seeded(i + 9)))
        for i, shape in enumerate(shapes)
    ]
    expected = 0.0
    for number, (mean, log_deviation) in enumerate(seen):
        kl = kl_divergence(Normal(mean, log_deviation.exp()), Normal(0.0, 0.3)).sum(dim=(-2, -1))
        per_sequence = []
        for b, row in enumerate(kl):
            first = 0  # the head reads the ends of the cues alone
            if number == 0 and scope == "answer_tokens":
                first = 3
            elif number == 0:
                first = (0, 2)[b // samples]  # the shorter prompt has two rows of padding
            per_sequence.append(row[first:].mean())
        expected += torch.stack(per_sequence).mean().item()
    found = method.example_penalty(ContextBank((), (), dict(enumerate(seen))), rows)
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
def test_every_example_pays_its_kl_in_full(adapted, loss_of, scope):
    model = adapted(CLora())
    free, half, full = (loss_of(CLora(kl_weight=w), model, scope=scope) for w in (0.0, 0.5, 1.0))
    assert free.penalty == 0
    torch.testing.assert_close(free.nll, full.nll)
    kl = full.total - full.nll
    assert kl > 1
    torch.testing.assert_close(half.total - half.nll, kl / 2)
    torch.testing.assert_close(full.penalty, 640 * kl.detach())


def test_a_cached_prompt_changes_nothing_of_c_loras_loss(adapted, loss_of):
    model = adapted(CLora(samples=2))
    without, cached = (
        loss_of(CLora(samples=2), model, cache=c) for c in (None, PromptCache(2**20))
    )
    torch.testing.assert_close(without.total, cached.total)
    torch.testing.assert_close(without.penalty, cached.penalty)


def test_a_new_c_lora_is_the_base_and_near_its_prior(loss_of):
    method = CLora()
    model = attach(tiny_llama(), lora_config(4, 8.0, MODULES, "tiny"), method.posterior())
    loss, base = loss_of(method, model), loss_of(Tfb(), model)
    torch.testing.assert_close(loss.nll, base.nll)  # B is zero
    kl = (loss.total - loss.nll).item()
    assert 0 < kl < 0.02 * 4**2 * len(module_tensors(model))


# --- TFB ---


def matrices(rank: int, *, zero: tuple[int, ...] = ()) -> dict[str, Tensor]:
    up = torch.randn(30, rank, generator=seeded(0))
    up[:, list(zero)] = 0.0
    return {"down": torch.randn(rank, 20, generator=seeded(1)), "up": up}


@pytest.mark.parametrize("zero", [(), (1,), (0, 1, 2, 3)])
def test_the_singular_form_has_the_same_product_and_orthogonal_columns(zero):
    before = matrices(4, zero=zero)
    after = {name: tensor.clone() for name, tensor in before.items()}
    to_singular_form(after)
    torch.testing.assert_close(after["up"] @ after["down"], before["up"] @ before["down"])
    gram = after["up"].T @ after["up"]
    torch.testing.assert_close(gram, gram.diag().diag(), rtol=0, atol=1e-4)
    values = torch.linalg.svdvals(before["up"])
    torch.testing.assert_close(after["up"].norm(dim=0), values, rtol=1e-5, atol=1e-5)
    assert (after["up"].norm(dim=0) == 0).sum() == len(zero)


def test_the_search_finds_the_largest_scale_that_is_allowed():
    for limit in (0.0013, 0.02, 0.37, 0.9):
        tried: list[float] = []

        def allowed(scale: float, limit: float = limit, tried: list[float] = tried) -> bool:
            tried.append(scale)
            return scale**2 <= limit**2

        found = largest_allowed(allowed, first=1e-3, largest=1.0, bisections=6)
        assert found in tried
        assert limit / 2 ** (2**-6) <= found <= limit
        assert len(tried) <= 11 + 6
    search: dict[str, Any] = {"first": 1e-3, "largest": 1.0, "bisections": 6}
    assert largest_allowed(lambda _: True, **search) == 1.0
    assert largest_allowed(lambda _: False, **search) == 0.0
    small = largest_allowed(lambda scale: scale <= 1e-4, **search)
    assert 0.5e-4 < small <= 1e-4


@pytest.mark.parametrize("tolerance", [0.2, 2.0])
def test_tfb_is_as_noisy_as_its_anchors_bear(configure, no_figures, tolerance):
    method = {"name": "tfb", "tolerance": tolerance, "bisections": 8}
    path = configure(method=method, bank={"samples": 3, "seed": 4})
    run = Run(read_config(path, {"optimizer.steps": "30"}))
    run.config.output_dir.mkdir()
    read = read_adapter(run.execute(None))
    posterior = read.posterior
    assert isinstance(posterior, ColumnSpaceNoise)
    predictor = run.evaluable()
    prompts = [predictor.encode(dict(example.input)) for example in run.data.train]
    modules = module_tensors(run.model)

    def nll(scale: float) -> float:
        bank = ColumnSpaceNoise(scale=scale).bank(modules, read.manifest.bank)
        found = predictor.posterior_samples(prompts, bank).by_sample.mean(dim=1)
        return -found.gather(1, answers).log().mean().item()

    silent = predictor.posterior_samples(prompts, posterior.mean(modules)).by_sample[:, 0]
    answers = silent.argmax(dim=-1, keepdim=True)
    assert (nll(posterior.scale) - nll(0.0)) / nll(0.0) <= tolerance + 1e-4
    assert (nll(1.01 * posterior.scale) - nll(0.0)) / nll(0.0) > tolerance
