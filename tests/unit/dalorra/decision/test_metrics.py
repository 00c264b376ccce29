import doctest
import itertools
import math
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from torchmetrics.functional.classification import binary_calibration_error

from dalorra.decision import metrics

# Few distinct values, so that ties are the rule.
scores = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=7).map(
    lambda pairs: ([p[0] / 8 for p in pairs], [p[1] for p in pairs])
)


def random_problem(seed, n=400, labels=4):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, labels)) * 2
    p = np.exp(logits)
    p /= p.sum(axis=1, keepdims=True)
    targets = np.array([generator.choice(labels, p=row**0.5 / np.sum(row**0.5)) for row in p])
    return p, targets


def test_the_docstrings_examples_are_true():
    result = doctest.testmod(metrics)
    assert result.attempted >= 6
    assert result.failed == 0


def test_needs_numpy_alone():
    code = (
        "import sys, dalorra.decision.metrics;"
        "print(sorted({'scipy', 'sklearn', 'torch', 'pandas'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_accuracy_counts_a_tie_for_the_first_label():
    assert metrics.accuracy([[0.5, 0.5], [0.5, 0.5], [0.1, 0.9]], [0, 1, 1]) == 2 / 3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nll_and_brier_agree_with_scikit_learn(seed):
    p, y = random_problem(seed)
    labels = list(range(p.shape[1]))
    assert metrics.negative_log_likelihood(p, y) == pytest.approx(
        log_loss(y, p, labels=labels), rel=1e-12
    )
    assert metrics.brier_score(p, y) == pytest.approx(
        brier_score_loss(y, p, labels=labels), rel=1e-12
    )


def test_nll_is_a_mean_over_examples_and_finite_for_an_impossible_answer():
    assert metrics.negative_log_likelihood([[0.0, 1.0]], [0]) == pytest.approx(708.3964185)
    # 1, 1/2 and 1/4 for the true labels: (0 + 1 + 2) · ln 2 / 3
    p = [[1.0, 0.0], [0.5, 0.5], [0.75, 0.25]]
    assert metrics.negative_log_likelihood(p, [0, 0, 1]) == pytest.approx(math.log(2))


def test_brier_of_certainty_is_0_when_right_and_2_when_wrong():
    assert metrics.brier_score([[1.0, 0.0, 0.0]], [0]) == 0.0
    assert metrics.brier_score([[1.0, 0.0, 0.0]], [2]) == 2.0


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ece_agrees_with_torchmetrics_away_from_the_edges(seed, bins):
    p, y = random_problem(seed)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == y
    # For a binary problem torchmetrics takes the confidences and whether they were right.
    oracle = binary_calibration_error(
        torch.from_numpy(confidence), torch.from_numpy(correct).long(), n_bins=bins, norm="l1"
    )
    assert metrics.expected_calibration_error(confidence, correct, bins=bins) == pytest.approx(
        float(oracle), abs=1e-6
    )


@pytest.mark.parametrize("bins", [5, 10, 15, 20])
def test_a_confidence_on_an_edge_belongs_to_the_bin_below(bins):
    for i in range(1, bins + 1):
        found = [b.count for b in metrics.reliability_bins([i / bins], [True], bins=bins)]
        assert found.index(1) == i - 1
        assert sum(found) == 1


def test_confidence_0_is_in_the_first_bin_and_just_above_an_edge_is_in_the_next():
    counts = [b.count for b in metrics.reliability_bins([0.0, np.nextafter(0.2, 1)], [1, 1])]
    assert counts[0] == 1
    assert counts[3] == 1


def test_full_confidence_shares_the_last_bin():
    # In one bin: |2/3 − (1 + 0.99 + 0.98)/3|; a separate bin for 1.0 would give another number.
    ece = metrics.expected_calibration_error([1.0, 0.99, 0.98], [True, True, False])
    assert ece == pytest.approx(0.97 / 3)


def test_ece_weighs_bins_by_their_size():
    confidence = [0.95] * 8 + [0.5] * 2
    correct = [True] * 6 + [False] * 2 + [True, True]
    assert metrics.expected_calibration_error(confidence, correct) == pytest.approx(
        0.8 * abs(0.75 - 0.95) + 0.2 * abs(1.0 - 0.5)
    )


def test_empty_bins_are_reported_as_such():
    bins = metrics.reliability_bins([0.95], [True], bins=10)
    assert [b.count for b in bins] == [0] * 9 + [1]
    assert math.isnan(bins[0].accuracy)
    assert math.isnan(bins[0].confidence)
    assert (bins[9].lower, bins[9].upper, bins[9].accuracy) == (0.9, 1.0, 1.0)


@given(scores)
def test_auroc_is_the_share_of_ordered_pairs(problem):
    uncertainty, correct = problem
    pairs = [
        (u > v) + 0.5 * (u == v)
        for u, right in zip(uncertainty, correct, strict=True)
        if not right
        for v, other in zip(uncertainty, correct, strict=True)
        if other
    ]
    value = metrics.auroc(uncertainty, correct)
    if pairs:
        assert value == pytest.approx(sum(pairs) / len(pairs))
    else:
        assert math.isnan(value)


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from([0.0, 0.05, 0.5, 0.73, 0.999, 1.0])),
        min_size=1,
        max_size=5,
    )
)
def test_the_calibration_error_by_chance_is_the_binomial_mean_deviation(bins):
    deviations = [
        stats.binom(n, c).expect(lambda right, n=n, c=c: abs(right - n * c)) for n, c in bins
    ]
    expected = sum(deviations) / sum(n for n, _ in bins)
    assert metrics.calibration_error_by_chance(bins) == pytest.approx(expected, abs=1e-9)


def test_calibrated_answers_have_that_calibration_error_on_average():
    generator = np.random.default_rng(0)
    confidence = np.round(generator.uniform(0.5, 1.0, 500), 2)
    bins = metrics.reliability_bins(confidence, confidence > 0.0)
    chance = metrics.calibration_error_by_chance((b.count, b.confidence) for b in bins if b.count)
    drawn = [
        metrics.expected_calibration_error(confidence, generator.random(500) < confidence)
        for _ in range(400)
    ]
    assert chance == pytest.approx(np.mean(drawn), abs=0.001)


def test_auroc_agrees_with_scikit_learn():
    generator = np.random.default_rng(0)
    uncertainty, wrong = generator.integers(0, 12, 500), generator.random(500) < 0.3
    assert metrics.auroc(uncertainty, ~wrong) == pytest.approx(
        roc_auc_score(wrong, uncertainty), rel=1e-12
    )


@pytest.mark.parametrize("levels", [5, 1_000_000])
def test_spearman_agrees_with_scipy(levels):
    generator = np.random.default_rng(1)
    x, y = generator.integers(0, levels, 300), generator.integers(0, levels, 300)
    y = y + x // 2
    assert metrics.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, rel=1e-9)


def test_spearman_sees_order_only_and_is_nan_for_a_constant():
    assert metrics.spearman([1, 2, 3, 4], [1, 10, 100, 1e9]) == pytest.approx(1.0)
    assert metrics.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert math.isnan(metrics.spearman([1, 1, 1], [1, 2, 3]))
    assert math.isnan(metrics.spearman([1], [1]))


def test_error_by_quantile_on_a_case_worked_by_hand():
    uncertainty = [0.5, 0.1, 0.4, 0.2, 0.3]
    correct = [False, True, False, True, False]
    groups = metrics.error_by_quantile(uncertainty, correct, quantiles=2)
    assert groups == [
        metrics.QuantileBin(lower=0.1, upper=0.3, count=3, error=pytest.approx(1 / 3)),
        metrics.QuantileBin(lower=0.4, upper=0.5, count=2, error=1.0),
    ]


def test_error_by_quantile_does_not_depend_on_the_order_of_ties():
    correct = [True] * 5 + [False] * 5
    forward = metrics.error_by_quantile([0.0] * 10, correct, quantiles=5)
    assert [group.error for group in forward] == [0.5] * 5


def expected_risk(uncertainty, correct):
    """Mean of the risk–coverage curve over every order that sorts by uncertainty."""
    orders = [
        order
        for order in itertools.permutations(range(len(correct)))
        if all(uncertainty[a] <= uncertainty[b] for a, b in itertools.pairwise(order))
    ]
    wrong = 1.0 - np.array(correct)
    curves = [np.cumsum(wrong[list(o)]) / np.arange(1, len(o) + 1) for o in orders]
    return np.mean(curves, axis=0)


@given(scores)
def test_risk_coverage_is_the_expectation_over_the_orders_of_ties(problem):
    uncertainty, correct = problem
    coverage, risk = metrics.risk_coverage_curve(uncertainty, correct)
    n = len(correct)
    assert coverage.tolist() == [(i + 1) / n for i in range(n)]
    np.testing.assert_allclose(risk, expected_risk(uncertainty, correct), atol=1e-12)
    assert metrics.aurc(uncertainty, correct) == pytest.approx(float(risk.mean()))


def test_aurc_of_the_best_and_the_worst_order():
    # 2 errors among 4: risks 0, 0, 1/3, 1/2 and 1, 1, 2/3, 1/2
    correct = [True, True, False, False]
    assert metrics.aurc([1, 2, 3, 4], correct) == pytest.approx((1 / 3 + 1 / 2) / 4)
    assert metrics.aurc([4, 3, 2, 1], correct) == pytest.approx((2 + 2 / 3 + 1 / 2) / 4)


@given(scores, st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 1.0]))
def test_acceptance_is_the_largest_set_below_a_threshold(problem, error):
    uncertainty, correct = map(np.array, problem)
    shares = [0.0]
    for threshold in uncertainty:
        accepted = uncertainty <= threshold
        if np.mean(~correct[accepted]) <= error:
            shares.append(float(accepted.mean()))
    assert metrics.acceptance_at_error(uncertainty, correct, error) == max(shares)


@given(scores, st.randoms(use_true_random=False))
def test_no_score_depends_on_the_order_of_the_examples(problem, random):
    pairs = list(zip(*problem, strict=True))
    random.shuffle(pairs)
    shuffled = tuple(zip(*pairs, strict=True))
    for function in (
        metrics.auroc,
        metrics.aurc,
        metrics.expected_calibration_error,
        lambda u, c: metrics.acceptance_at_error(u, c, 0.3),
        metrics.spearman,
        lambda u, c: [b.error for b in metrics.error_by_quantile(u, c, quantiles=1)],
    ):
        assert function(*problem) == pytest.approx(function(*shuffled), nan_ok=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.accuracy([0.5, 0.5], [0]), "must be [n, K]"),
        (lambda: metrics.accuracy([[0.5, 0.4]], [0]), "must sum to 1"),
        (lambda: metrics.accuracy([[1.5, -0.5]], [0]), "not negative"),
        (lambda: metrics.accuracy([[0.5, 0.5]], [2]), "between 0 and 1"),
        (lambda: metrics.accuracy([[0.5, 0.5]], [-1]), "between 0 and 1"),
        (lambda: metrics.accuracy([[0.5, 0.5]], [0.0]), "integers"),
        (lambda: metrics.accuracy([[0.5, 0.5]], [0, 1]), "1 integers"),
        (lambda: metrics.brier_score([[math.nan, 1.0]], [0]), "finite"),
        (lambda: metrics.expected_calibration_error([1.1], [True]), "between 0 and 1"),
        (lambda: metrics.expected_calibration_error([0.5], [True], bins=0), "at least 1"),
        (lambda: metrics.expected_calibration_error([], []), "non-empty"),
        (lambda: metrics.auroc([math.nan], [True]), "finite"),
        (lambda: metrics.auroc([0.1, 0.2], [True]), "correct must be [2]"),
        (lambda: metrics.auroc([0.1], [0.5]), "booleans"),
        (lambda: metrics.spearman([1, 2], [1]), "equally long"),
        (lambda: metrics.error_by_quantile([0.1], [True], quantiles=2), "quantiles"),
        (lambda: metrics.acceptance_at_error([0.1], [True], 1.5), "between 0 and 1"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
