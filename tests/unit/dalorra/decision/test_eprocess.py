import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dalorra.decision.eprocess import ODDS, EProcess

losses = st.lists(st.floats(0.0, 1.0), max_size=30)
targets = st.floats(0.001, 0.9)


def paths(target, rate, length):
    """Every sequence of `length` binary losses, its probability, and its e-values."""
    for sequence in itertools.product((0, 1), repeat=length):
        probability = math.prod(rate if loss else 1 - rate for loss in sequence)
        process, wealth = EProcess(target), [1.0]
        for loss in sequence:
            process = process.observe(loss)
            wealth.append(process.e_value)
        yield probability, wealth


def stopped_mean(target, rate, length, level):
    """E[e_τ] and P(τ < ∞) for τ the first time that the e-value reaches `level`, at most T."""
    mean = reached = 0.0
    for probability, wealth in paths(target, rate, length):
        stop = next((t for t, value in enumerate(wealth) if value >= level), len(wealth) - 1)
        mean += probability * wealth[stop]
        reached += probability * (wealth[stop] >= level)
    return mean, reached


def test_two_losses_by_hand():
    m = 0.1
    process = EProcess(m)
    assert process.e_value == 1.0

    def factor(odds, loss):  # likelihood ratio of q to m
        q = odds * m / (1 - m + odds * m)
        return q / m if loss else (1 - q) / (1 - m)

    # 1/2 is staked on the first loss, 1/6 more on the second, 1/3 waits.
    after = process.observe(1).observe(0)
    expected = np.mean([(factor(r, 1) / 2 + 1 / 6) * factor(r, 0) for r in ODDS]) + 1 / 3
    assert after.e_value == pytest.approx(expected)
    assert after.count == 2
    assert process.e_value == 1.0, "the old one is as it was"


@pytest.mark.parametrize("level", [1.5, 3.0, 20.0, math.inf])
def test_a_gambler_on_a_kept_promise_gains_nothing_whenever_he_stops(level):
    at_the_limit, reached = stopped_mean(0.2, 0.2, 10, level)
    assert at_the_limit == pytest.approx(1.0, abs=1e-12), "at the limit the game is fair"
    assert reached <= 1 / level
    below, _ = stopped_mean(0.2, 0.1, 10, level)
    assert below < 1.0


@given(targets, losses)
def test_wealth_is_never_negative_and_a_loss_at_the_target_leaves_it(target, seen):
    process = EProcess.after(target, seen)
    assert process.e_value >= 0.0
    assert process.observe(target).e_value == pytest.approx(process.e_value, rel=1e-9)
    assert process.observe(0.0).e_value <= process.e_value * (1 + 1e-9)
    assert process.observe(1.0).e_value >= process.e_value * (1 - 1e-9)


@given(targets, losses)
def test_it_goes_on_from_its_state(target, seen):
    process = EProcess.after(target, seen)
    state = json.loads(json.dumps({"count": process.count, "staked": process.staked}))
    assert EProcess(target, state["count"], tuple(state["staked"])) == process


def reached(rates, target=0.05, alpha=0.2, runs=300, seed=5):
    """Number of losses until the alarm in each run; inf where there is none."""
    generator = np.random.default_rng(seed)
    first = np.full(runs, math.inf)
    for run, drawn in enumerate(generator.random((runs, len(rates))) < np.asarray(rates)):
        process = EProcess(target)
        for t, loss in enumerate(drawn.tolist(), start=1):
            process = process.observe(loss)
            if process.e_value >= 1 / alpha:
                first[run] = t
                break
    return first


def test_a_kept_promise_is_called_broken_in_at_most_alpha_of_all_runs():
    """At the limit, looking after every single loss."""
    alarms = np.isfinite(reached(np.full(600, 0.05))).sum()
    assert alarms <= stats.binom.ppf(0.999, 300, 0.2)


def test_looking_at_a_p_value_after_every_loss_would_not_do():
    """The test above can fail: a binomial test, valid once, is far off when it is repeated."""
    drawn = np.random.default_rng(5).random((300, 600)) < 0.05
    count = np.arange(1, 601)
    p_values = stats.binom.sf(drawn.cumsum(axis=1) - 1, count, 0.05)
    alarms = (p_values <= 0.2).any(axis=1).sum()
    assert alarms > stats.binom.ppf(0.999, 300, 0.2)


def test_a_broken_promise_is_noticed():
    soon = reached(np.full(1000, 0.15), alpha=0.05, runs=100)
    assert np.isfinite(soon).mean() == 1.0
    assert np.median(soon) < 150
    twice = reached(np.full(1500, 0.10), alpha=0.05, runs=60)
    assert np.isfinite(twice).mean() > 0.95


def test_one_that_breaks_late_is_noticed_too():
    """2,000 good answers cost the gambler 2 log 2,000 = 15 nats, not what he would have lost."""
    rates = np.r_[np.full(2000, 0.02), np.full(1200, 0.15)]
    late = reached(rates, alpha=0.05, runs=30)
    assert (late > 2000).mean() > 0.9
    assert np.isfinite(late).mean() == 1.0


@pytest.mark.parametrize("target", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_target_that_nothing_can_exceed_is_refused(target):
    with pytest.raises(ValueError, match="target must lie"):
        EProcess(target)


@pytest.mark.parametrize("loss", [-0.1, 1.1, math.nan])
def test_a_loss_that_is_none_is_refused(loss):
    with pytest.raises(ValueError, match="loss must lie"):
        EProcess(0.1).observe(loss)


def test_wealth_stays_a_number():
    process = EProcess.after(0.001, [1.0] * 400)
    assert math.isfinite(process.e_value)
    assert process.e_value > 1e290
