"""Laplace-LoRA's predictive, against independent computations."""

import math

import pytest
import torch

from dalorra.decision.policy import Policy
from dalorra.posteriors import Deterministic, Laplace
from dalorra.prompts import PromptFormat, Scope
from tests.tiny import FORMAT, predictor_before_saving, tiny_base, tiny_manifest, tiny_prompts
from tests.tiny_laplace import SCOPES, THREE, Setting, every_logit, setting
from training.laplace import Curvature, LaplacePredictor, fit_curvature


def fitted(scope: Scope, prompt: PromptFormat = FORMAT) -> tuple[Setting, Curvature]:
    tiny = setting(scope, prompt=prompt)
    return tiny, fit_curvature(tiny.gradients, tiny.prompts)


def on(
    tiny: Setting, curvature: Curvature, precision: float, prompt: PromptFormat = FORMAT
) -> LaplacePredictor:
    manifest = tiny_manifest(
        tiny.base,
        tiny.model,
        tiny.gradients.scope,
        method="mle",
        posterior=Deterministic(),
        prompt=prompt,
    )
    mode = predictor_before_saving(tiny.model, tiny.base, manifest)
    posterior = Laplace(prior_precision=precision, draws=4096, factors="")
    return LaplacePredictor(mode, tiny.gradients, curvature, posterior, seed=0)


def predictor(scope: Scope, precision: float) -> LaplacePredictor:
    return on(*fitted(scope), precision)


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
    tiny, curvature = fitted("answer_tokens", THREE)
    laplace = on(tiny, curvature, 2.0, THREE)
    logits, weights = tiny.gradients(PROMPTS, every_logit)
    covariance = curvature.covariance(weights, 2.0).double()  # [B, K, K]
    noise = torch.randn(100_000, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    root = torch.linalg.cholesky(covariance + 1e-6 * torch.eye(3))
    p = (logits.double() + torch.einsum("bij,sbj->sbi", root, noise)).softmax(-1)
    for found, mean in zip(laplace.predict(PROMPTS), p.mean(0), strict=True):
        assert list(found.probabilities.values()) == pytest.approx(mean.tolist(), abs=4e-3)


@pytest.mark.parametrize("scope", SCOPES)
def test_an_answer_does_not_depend_on_its_batch(scope):
    laplace = predictor(scope, 1.0)
    together = laplace.predict(PROMPTS * 10)
    alone = [laplace.predict([prompt])[0] for prompt in PROMPTS]
    for one, other in zip(together, alone * 10, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-5)
        assert one.variance == pytest.approx(other.variance, abs=1e-5)


def test_a_policys_temperature_divides_the_logits():
    laplace = predictor("answer_tokens", 1.0)
    cold = laplace.posterior_samples(PROMPTS).probabilities
    laplace.policy = Policy.never().model_copy(update={"temperature": 2.0})
    warm = laplace.posterior_samples(PROMPTS).probabilities
    torch.testing.assert_close(warm, (cold.log() / 2).softmax(-1))
    assert laplace.mode.policy.temperature == 2.0
