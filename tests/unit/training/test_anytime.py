import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from training.anytime import log_e_value, path_p_values, upper_limit
from training.risk_control import Risk, ScoredExamples, Strictness, mean_p_value
from training.threshold_path import ThresholdPath


def e_value(total, count, target):
    return float(np.exp(log_e_value(np.array([float(total)]), np.array([count]), target)[0]))


def margin(n, rate, level=1e-4):
    """Most cases of n that a rate explains."""
    return stats.binom.isf(level, n, rate)


@pytest.mark.parametrize(("total", "count", "target"), [(0, 40, 0.1), (3, 90, 0.1), (2.5, 7, 0.6)])
def test_the_wealth_is_the_mean_over_the_bets(total, count, target):
    def wealth(q):
        ratio = (q / target) ** total * ((1 - q) / (1 - target)) ** (count - total)
        return ratio * stats.beta.pdf(q, 0.5, 0.5)

    mean = integrate.quad(wealth, 0.0, target)[0] / stats.beta.cdf(target, 0.5, 0.5)
    assert e_value(total, count, target) == pytest.approx(mean, rel=1e-6)


@given(st.integers(0, 30), st.integers(0, 300), st.floats(0.005, 0.5), st.floats(0.0, 1.0))
def test_no_loss_makes_the_wealth_grow_in_the_mean_where_its_mean_is_the_target(
    wrong, right, target, loss
):
    # Losses of 0 and 1 give it all; one between them, with the same mean, at most as much.
    now = e_value(wrong, wrong + right, target)
    after = [e_value(wrong + x, wrong + right + 1, target) for x in (0.0, loss, 1.0)]
    assert (1 - target) * after[0] + target * after[2] == pytest.approx(now, rel=1e-6)
    assert after[1] <= ((1 - loss) * after[0] + loss * after[2]) * (1 + 1e-6)


@pytest.mark.parametrize("above", [0.0, 0.003])
def test_whoever_looks_after_every_loss_is_wrong_as_rarely_as_promised(above):
    target, runs, n = 0.1, 2000, 1000
    losses = np.random.default_rng(1).random((runs, n)) < target + above
    evidence = log_e_value(losses.cumsum(axis=1).astype(float), np.arange(1, n + 1), target)
    fooled = (evidence >= np.log(20)).any(axis=1).sum()
    assert fooled <= margin(runs, 0.05)
    binomial = mean_p_value(losses.cumsum(axis=1).astype(float), np.arange(1, n + 1), target)
    assert (binomial <= 0.05).any(axis=1).sum() > margin(runs, 0.05), "or this shows nothing"


def test_what_the_choice_of_the_moment_costs():
    n, none = np.arange(1, 1001), np.zeros(1000)
    assert int(n[log_e_value(none, n, 0.05) >= np.log(20)][0]) == 74
    assert int(n[mean_p_value(none, n, 0.05) <= 0.05][0]) == 59
    most = stats.binom.ppf(0.05, n, 0.05) - 1  # errors with which n losses reject
    for mean, chosen, fixed in ((0.0125, 131, 93), (0.025, 381, 181)):
        assert int(n[stats.binom.cdf(most, n, mean) >= 0.5][0]) == fixed
        total = (np.random.default_rng(0).random((2000, len(n))) < mean).cumsum(axis=1)
        shown = log_e_value(total.astype(float), n, 0.05) >= np.log(20)
        moment = np.where(shown.any(axis=1), shown.argmax(axis=1) + 1, len(n))
        assert np.median(moment) == pytest.approx(chosen, rel=0.1)


@given(st.integers(1, 500), st.floats(0.0, 0.99), st.floats(0.6, 0.99))
def test_the_upper_limit_is_where_the_test_turns(count, mean, confidence):
    total = mean * count
    limit = upper_limit(total, count, confidence)
    assert mean < limit <= 1.0
    if limit < 1.0 - 1e-6:
        assert e_value(total, count, limit - 1e-7) <= 1 / (1 - confidence) * (1 + 1e-3)
        assert e_value(total, count, min(limit + 1e-7, 1 - 1e-9)) >= 1 / (1 - confidence) * 0.999


def test_nothing_is_known_of_nothing():
    assert e_value(0, 0, 0.1) == pytest.approx(1.0)
    assert upper_limit(0.0, 0, 0.95) == 1.0
    assert upper_limit(5.0, 5, 0.95) == 1.0


def test_a_step_is_as_sure_as_the_worst_of_its_risks():
    p, v = np.array([0.9] * 60 + [0.7] * 60), np.zeros(120)
    wrong, counted = np.zeros(120), np.arange(120) < 20
    few = Risk(wrong, counted, 0.1)
    all_of_them = Risk(wrong, np.ones(120, dtype=bool), 0.1)
    path = ThresholdPath(Strictness(1.0), np.array([0.9, 0.7]))
    both = path_p_values(path, ScoredExamples(p, v, (all_of_them, few)))
    assert both.tolist() == path_p_values(path, ScoredExamples(p, v, (few,))).tolist()
    alone = path_p_values(path, ScoredExamples(p, v, (all_of_them,)))
    assert alone.tolist() == pytest.approx([1 / e_value(0, 60, 0.1), 1 / e_value(0, 120, 0.1)])
    free = Risk(np.ones(120), counted, 1.0)
    assert path_p_values(path, ScoredExamples(p, v, (free,))).tolist() == [0.0, 0.0]
