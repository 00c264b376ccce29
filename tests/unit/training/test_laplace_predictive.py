"""Laplace-LoRA's evidence and predictive, against dense and independent computations."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from dalorra.decision.policy import Policy
from dalorra.posteriors import Deterministic, Laplace
from dalorra.posteriors.bank import BankSpec
from dalorra.predictor import Predictor
from dalorra.prompts import PromptTokenizer
from tests.tiny import FORMAT, tiny_adapter, tiny_base, tiny_prompts
from tests.unit.training.test_laplace import SCOPES, THREE, dense, every_logit, label_ids, setting
from training.laplace import (
    LabelGradients,
    LaplacePredictor,
    best_precision,
    fit_curvature,
    log_evidence,
)
from training.laplace.curvature import (
    squared_norm,
)
from training.prompt_cache import PromptCache

# --- evidence ---


def test_the_evidence_is_that_of_dense_gaussians():
    _, _, prompts, gradients = setting("answer_tokens")
    curvature, log_p = fit_curvature(gradients, prompts)
    theta = torch.cat([w.flatten() for _, w in gradients.weights]).double()
    assert squared_norm(gradients.weights) == pytest.approx(theta.square().sum().item())
    hessian, size = dense(curvature), len(theta)
    log_likelihood = log_p[:, 0].sum().item()
    for precision in (0.05, 1.0, 40.0):
        prior = MultivariateNormal(torch.zeros(size).double(), torch.eye(size) / precision)
        posterior = hessian + precision * torch.eye(size)
        expected = log_likelihood + prior.log_prob(theta) + 0.5 * size * math.log(2 * math.pi)
        expected -= 0.5 * torch.logdet(posterior)
        found = log_evidence(
            curvature.eigenvalues, theta.square().sum().item(), precision, log_likelihood
        )
        assert found == pytest.approx(expected.item(), rel=1e-5)


def test_the_best_precision_is_the_maximum_of_the_evidence():
    generator = torch.Generator().manual_seed(1)
    eigenvalues = torch.rand(200, generator=generator).double().pow(6) * 1e4
    for norm in (0.01, 5.0, 3000.0):
        best = best_precision(eigenvalues, norm)
        top = log_evidence(eigenvalues, norm, best)
        grid = [best * 10 ** (step / 20) for step in range(-80, 81) if step]
        assert all(log_evidence(eigenvalues, norm, other) < top for other in grid)
    # In one dimension γ = λ‖θ‖²: e / (λ + e) = λ n.
    e, n = 3.0, 0.5
    root = (-e * n + math.sqrt((e * n) ** 2 + 4 * n * e)) / (2 * n)
    assert best_precision(torch.tensor([e]).double(), n) == pytest.approx(root)
    with pytest.raises(ValueError, match="no maximum"):
        best_precision(torch.zeros(3).double(), 1.0)


# --- predictive ---


def predictor(scope, precision, prompt=FORMAT, draws=4096) -> LaplacePredictor:
    base = tiny_base()
    model = tiny_adapter(base, rank=2)
    mode = Predictor(
        model,
        PromptTokenizer(base.tokenizer, prompt),
        Deterministic(),
        BankSpec(),
        scope,
        policy=Policy.never(),
        model_name="tiny",
        adapter_name="tiny",
        adapter_digest="0" * 64,
        method="laplace",
    )
    gradients = LabelGradients(model, label_ids(base, prompt), scope, PromptCache(2**30))
    curvature, _ = fit_curvature(gradients, tiny_prompts(base))
    posterior = Laplace(prior_precision=precision, draws=draws, factors="")
    return LaplacePredictor(mode, gradients, curvature, posterior, seed=0)


PROMPTS = tiny_prompts(tiny_base())


@pytest.mark.parametrize("scope", SCOPES)
def test_a_prior_without_doubt_leaves_the_trained_adapter(scope):
    certain = predictor(scope, 1e12)
    for found, mean in zip(certain.predict(PROMPTS), certain.predict_mean(PROMPTS), strict=True):
        assert found.label == mean.label
        assert found.probability == pytest.approx(mean.probability, abs=1e-4)
        assert found.variance < 1e-8
        assert found.mutual_information < 1e-8
        assert (found.samples, found.standard_error) == (1, None)


def test_the_weaker_the_prior_the_less_confident_the_answer():
    confidence = [
        [p.probability for p in predictor("answer_tokens", precision).predict(PROMPTS)]
        for precision in (1e4, 1.0, 1e-2)
    ]
    for strong, middle, weak in zip(*confidence, strict=True):
        assert strong > middle > weak >= 0.5
    variance = [p.variance for p in predictor("answer_tokens", 1.0).predict(PROMPTS)]
    assert min(variance) > 1e-4


def test_the_predictive_of_two_labels_is_the_integral_of_the_sigmoid():
    laplace = predictor("answer_tokens", 1.0)
    mean, covariance = laplace.logit_moments(PROMPTS)
    step = torch.linspace(-9, 9, 20001).double()
    density = torch.exp(-0.5 * step**2) / math.sqrt(2 * math.pi) * (step[1] - step[0])
    # The contrast is (f_0 − f_1) / √2, so the difference has twice its variance.
    difference = mean[:, 0] - mean[:, 1]
    p = torch.sigmoid(difference[:, None] + (2 * covariance[:, 0]).sqrt() * step)  # [B, steps]
    expected = (p * density).sum(-1)
    spread = (p.square() * density).sum(-1) - expected.square()
    for found, first, variance in zip(laplace.predict(PROMPTS), expected, spread, strict=True):
        assert found.probabilities["negative"] == pytest.approx(first.item(), abs=2e-4)
        assert found.variance == pytest.approx(variance.item(), abs=2e-4)


def test_the_predictive_of_three_labels_is_that_of_many_draws_of_all_logits():
    laplace = predictor("answer_tokens", 2.0, THREE)
    gradients = laplace._gradients
    logits, weights = gradients(PROMPTS, every_logit)
    covariance = laplace._curvature.covariance(weights, 2.0).double()  # [B, K, K]
    noise = torch.randn(100_000, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    root = torch.linalg.cholesky(covariance + 1e-6 * torch.eye(3))
    p = (logits.double() + torch.einsum("bij,sbj->sbi", root, noise)).softmax(-1)
    for found, mean in zip(laplace.predict(PROMPTS), p.mean(0), strict=True):
        assert list(found.probabilities.values()) == pytest.approx(mean.tolist(), abs=4e-3)


@pytest.mark.parametrize("scope", SCOPES)
def test_an_answer_does_not_depend_on_its_batch(scope):
    laplace = predictor(scope, 1.0)
    together = laplace.predict(PROMPTS)
    alone = [laplace.predict([prompt])[0] for prompt in reversed(PROMPTS)]
    for one, other in zip(together, reversed(alone), strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-5)
        assert one.variance == pytest.approx(other.variance, abs=1e-5)


def test_a_policys_temperature_divides_the_logits():
    laplace = predictor("answer_tokens", 1.0)
    cold = laplace.posterior_samples(PROMPTS).probabilities
    laplace.policy = Policy.never().model_copy(update={"temperature": 2.0})
    warm = laplace.posterior_samples(PROMPTS).probabilities
    torch.testing.assert_close(warm, (cold.log() / 2).softmax(-1))
    assert laplace.mode.policy.temperature == 2.0
