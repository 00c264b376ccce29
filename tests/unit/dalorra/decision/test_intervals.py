import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from dalorra.decision.intervals import (
    beta_cdf,
    binomial_interval,
    percentile_interval,
    resampled_means,
)


@given(
    st.floats(0.0, 1.0),
    st.floats(0.5, 1e5),
    st.floats(0.5, 1e5),
)
def test_the_incomplete_beta_function_is_scipys(x, a, b):
    # lgamma of 1e5 is 1e6: its last bit is 1e-10.
    assert beta_cdf(x, a, b) == pytest.approx(special.betainc(a, b, x), rel=1e-8, abs=1e-12)


@given(st.integers(0, 3000), st.floats(0.0, 1.0), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_the_interval_is_scipys(count, share, confidence):
    errors = round(share * count)
    found = binomial_interval(errors, count, confidence)
    if count == 0:
        assert found == (0.0, 1.0)
    else:
        exact = stats.binomtest(errors, count).proportion_ci(confidence, method="exact")
        assert found == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_nothing_and_everything_by_hand():
    assert binomial_interval(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1))
    assert binomial_interval(10, 10) == pytest.approx((0.025**0.1, 1.0))
    low, high = binomial_interval(3, 10)
    mirrored = binomial_interval(7, 10)
    assert (low, high) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]))


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.3, 0.5])
def test_it_covers_at_least_as_often_as_it_says(rate):
    """Exactly: over all outcomes of 40 draws, with their probabilities."""
    covered = sum(
        stats.binom.pmf(errors, 40, rate)
        for errors in range(41)
        if (interval := binomial_interval(errors, 40, 0.9))[0] <= rate <= interval[1]
    )
    assert covered >= 0.9


def test_more_draws_make_it_narrower():
    widths = [
        high - low for low, high in (binomial_interval(n // 20, n) for n in (20, 200, 2000, 20_000))
    ]
    assert all(b < a for a, b in itertools.pairwise(widths))


@pytest.mark.parametrize(
    "arguments", [(-1, 5, 0.9), (6, 5, 0.9), (1, 5, 0.0), (1, 5, 1.0), (1, 5, math.nan)]
)
def test_what_makes_no_sense_is_refused(arguments):
    with pytest.raises(ValueError, match="must lie"):
        binomial_interval(*arguments)


# --- by resampling ---


def coverage(rows: int, of_row: float, *, averaged: bool = False) -> float:
    """How often the interval has the true mean, 0, of 400 tables of random effects.

    That of a column and of a cell have a deviation of 1; `averaged` resamples the mean over rows.
    """
    generator, columns, hits = np.random.default_rng(0), 64, 0
    for _ in range(400):
        table = (
            generator.normal(0, of_row, (rows, 1))
            + generator.normal(0, 1, columns)
            + generator.normal(0, 1, (rows, columns))
        )
        table = table.mean(axis=0, keepdims=True) if averaged else table
        low, high = percentile_interval(resampled_means(table, resamples=200))
        hits += low <= 0.0 <= high
    return hits / 400


@pytest.mark.parametrize(("rows", "of_row"), [(1, 0.0), (3, 0.0), (3, 0.125), (3, 0.25), (5, 0.25)])
def test_the_interval_covers_the_truth_as_often_as_it_says(rows, of_row):
    """1/8 is the standard error of a mean over the columns."""
    assert 0.91 <= coverage(rows, of_row) <= 0.995


def test_means_over_rows_that_differ_cover_the_truth_less_often():
    assert coverage(3, 0.25, averaged=True) < coverage(3, 0.25) - 0.1


def test_pairing_makes_the_interval_of_a_difference_narrow():
    generator = np.random.default_rng(0)
    hard = generator.exponential(1.0, (3, 500))  # what is hard for one method is for the other
    ours, theirs = (hard + generator.normal(shift, 0.1, (3, 500)) for shift in (0.0, 0.03))
    low, high = percentile_interval(resampled_means(ours - theirs))
    assert high < 0.0
    both = resampled_means(np.stack([ours, theirs]))
    assert percentile_interval(both[0] - both[1]) == pytest.approx((low, high), abs=1e-12)
    apart = resampled_means(ours, seed=1) - resampled_means(theirs, seed=2)
    loose_low, loose_high = percentile_interval(apart)
    assert loose_high - loose_low > 5 * (high - low)


@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 5))
def test_resampled_means_are_weighted_means_of_the_table_and_the_seeds_alone(rows, columns, seed):
    table = np.random.default_rng(seed).normal(size=(2, rows, columns))
    means = resampled_means(table, resamples=50, seed=seed)
    assert means.shape == (2, 50)
    assert (means >= table.min(axis=(1, 2))[:, None] - 1e-12).all()
    assert (means <= table.max(axis=(1, 2))[:, None] + 1e-12).all()
    np.testing.assert_array_equal(means, resampled_means(table, resamples=50, seed=seed))
    np.testing.assert_allclose(resampled_means(table + 1.0, resamples=50, seed=seed), means + 1.0)


@pytest.mark.parametrize("rows", [2, 3, 10])
def test_the_variance_over_few_rows_is_that_of_their_mean(rows):
    table = np.random.default_rng(1).normal(size=(rows, 1))
    means = resampled_means(table, resamples=40_000)
    assert means.var() == pytest.approx(table.var(ddof=1) / rows, rel=0.05)


def test_what_cannot_be_resampled_is_refused():
    for table in (np.zeros(3), np.zeros((0, 3)), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="tables must be finite"):
            resampled_means(table)
    with pytest.raises(ValueError, match="strictly between"):
        percentile_interval([1.0, 2.0], 1.0)
