import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from dalorra.decision.intervals import beta_cdf, binomial_interval


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
