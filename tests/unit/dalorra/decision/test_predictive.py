import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dalorra.decision.policy import Policy
from dalorra.decision.predictive import PosteriorSamples, summarise
from dalorra.posteriors.masks import hard_masks

LABELS = ("negative", "positive")


def test_moments_of_a_case_worked_out_by_hand():
    # p(positive) = 0.9, 0.6, 0.3 under three samples; its mean is 0.6.
    p = torch.tensor([[[0.1, 0.9], [0.4, 0.6], [0.7, 0.3]]], dtype=torch.float64)
    (found,) = summarise(p, LABELS)
    assert found.label == "positive"
    assert found.probability == pytest.approx(0.6)
    assert found.probabilities == pytest.approx({"negative": 0.4, "positive": 0.6})
    assert found.variance == pytest.approx((0.09 + 0.0 + 0.09) / 3)
    assert found.entropy == pytest.approx(0.6730116670092565)
    # − Σ p log p of the samples: 0.325083, 0.673012, 0.610864
    assert found.mutual_information == pytest.approx(0.1366920, abs=1e-6)
    assert found.samples == 3
    assert found.sample_probabilities == pytest.approx((0.9, 0.6, 0.3))


def test_the_label_is_that_of_the_mean_and_not_of_the_majority():
    p = torch.tensor([[[0.0, 1.0, 0.0], [0.6, 0.4, 0.0], [0.6, 0.4, 0.0]]])
    (found,) = summarise(p, ("a", "b", "c"))
    assert found.label == "b"
    assert found.probability == pytest.approx(0.6)
    assert found.variance == pytest.approx((0.4**2 + 0.2**2 + 0.2**2) / 3)


def test_one_sample_has_no_variance_and_no_mutual_information():
    (found,) = summarise(torch.tensor([[[0.25, 0.75]]]), LABELS)
    assert (found.probability, found.variance, found.mutual_information) == (0.75, 0.0, 0.0)
    assert found.entropy == pytest.approx(0.5623351446188083)


def test_certain_and_disagreeing_samples():
    certain = torch.tensor([[0.0, 1.0]]).expand(4, 2)
    split = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(2, 1)
    found, torn = summarise(torch.stack([certain, split]), LABELS)
    assert (found.entropy, found.mutual_information, found.variance) == (0.0, 0.0, 0.0)
    assert torn.variance == 0.25
    assert torn.entropy == torn.mutual_information == pytest.approx(math.log(2))


def test_order_is_kept_and_an_empty_batch_is_empty():
    p = torch.tensor([[[0.2, 0.8]], [[0.9, 0.1]], [[0.4, 0.6]]])
    assert [x.label for x in summarise(p, LABELS)] == ["positive", "negative", "positive"]
    assert summarise(torch.empty(0, 3, 2), LABELS) == []


@given(
    logits=st.lists(st.lists(st.floats(-30, 30), min_size=3, max_size=3), min_size=1, max_size=12)
)
@settings(max_examples=80, deadline=None)
def test_bounds_hold_for_any_samples(logits):
    p = torch.tensor([logits]).softmax(-1)
    (found,) = summarise(p, ("a", "b", "c"))
    assert sum(found.probabilities.values()) == pytest.approx(1.0)
    assert found.probability == max(found.probabilities.values()) >= 1 / 3 - 1e-6
    assert 0.0 <= found.variance <= found.probability * (1 - found.probability) + 1e-6
    assert 0.0 <= found.mutual_information <= found.entropy <= math.log(3) + 1e-6
    assert found.samples == len(logits)


def test_the_standard_error_worked_out_by_hand():
    # 0.9, 0.6, 0.3: unbiased variance 0.09, over 3 samples
    p = torch.tensor([[[0.1, 0.9], [0.4, 0.6], [0.7, 0.3]]], dtype=torch.float64)
    assert summarise(p, LABELS)[0].standard_error == pytest.approx(math.sqrt(0.09 / 3))
    assert summarise(p[:, :1], LABELS)[0].standard_error is None


def test_what_is_integrated_within_a_sample_adds_no_standard_error():
    # Two samples that agree on average, each under two masks of the head that disagree.
    p = torch.tensor([[[[0.1, 0.9], [0.5, 0.5]], [[0.1, 0.9], [0.5, 0.5]]]])
    (found,) = summarise(PosteriorSamples(p, torch.tensor([0.5, 0.5])), LABELS)
    assert found.variance == pytest.approx(0.04)
    assert found.standard_error == pytest.approx(0.0)
    assert found.sample_probabilities == pytest.approx((0.7, 0.7))


def bank_errors(sampler, samples, repetitions=3000):
    """True error of p̄ and the estimate of it, over banks for a made-up adapter of 6 mask bits."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.tensor([1.5, -1.0, 0.8, 0.5, -0.4, 2.0])
    on = torch.tensor([0.9, 0.3, 0.5, 0.7, 0.2, 0.6])
    masks = torch.stack(
        [hard_masks(on[None], samples, generator, sampler)[:, 0] for _ in range(repetitions)]
    )  # [repetitions, M, 6]
    # Bits that interact, so that stratifying each of them does not remove all of the error.
    yes = torch.sigmoid(2.0 + masks @ weight - 1.5 * masks[..., 0] * masks[..., 5])
    found = summarise(torch.stack([1 - yes, yes], dim=-1), LABELS)
    assert {prediction.label for prediction in found} == {"positive"}
    probability = torch.tensor([prediction.probability for prediction in found])
    estimate = torch.tensor([prediction.standard_error for prediction in found])
    return probability.var().item(), estimate.square().mean().item()


@pytest.mark.parametrize("samples", [2, 10])
def test_the_squared_standard_error_is_unbiased_for_independent_samples(samples):
    true, estimated = bank_errors("iid", samples)
    assert estimated == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize(("samples", "share"), [(2, 0.7), (10, 0.5)])
def test_the_standard_error_of_a_stratified_bank_is_an_upper_estimate(samples, share):
    true, estimated = bank_errors("stratified", samples)
    assert true < share * estimated


def test_tempering_divides_the_logits_of_every_sample():
    logits = torch.tensor([[[[3.0, 0.0, -200.0], [1.0, 1.0, 0.0]]]])
    samples = PosteriorSamples(logits.softmax(-1), torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(samples.tempered(2.0).probabilities, (logits / 2.0).softmax(-1))
    assert samples.tempered(1.0) is samples
    alone = PosteriorSamples(logits[:, :, :1].softmax(-1), torch.ones(1))
    sharp = alone.tempered(0.5).probabilities
    torch.testing.assert_close(sharp, (logits[:, :, :1] / 0.5).softmax(-1))

    policy = Policy(min_probability=0.9, max_variance=0.01, temperature=2.0, source="a test")
    labels = ("a", "b", "c")
    assert policy.summarise(samples, labels) == summarise(samples.tempered(2.0), labels)


@given(st.floats(0.05, 0.99), st.integers(0, 10_000))
def test_below_1_the_mean_is_sharpened_and_not_the_disagreement(temperature, seed):
    logits = 2.0 * torch.randn(3, 10, 1, 4, generator=torch.Generator().manual_seed(seed))
    samples = PosteriorSamples(logits.softmax(-1), torch.ones(1))
    found = samples.tempered(temperature)
    torch.testing.assert_close(found.probabilities.sum(-1), torch.ones(3, 10, 1))
    before, after = (s.probabilities.log() for s in (samples, found))
    for a, b in ((0, 1), (3, 9)):  # two samples differ in their log-odds as before
        difference = (after[:, a] - after[:, b]) - (before[:, a] - before[:, b])
        torch.testing.assert_close(
            difference - difference.mean(-1, keepdim=True),
            torch.zeros_like(difference),
            atol=1e-3,
            rtol=0,
        )
