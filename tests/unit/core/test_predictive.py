import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dalorra.predictive import summarise

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
