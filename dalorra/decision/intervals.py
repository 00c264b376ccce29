"""Confidence intervals, without scipy, which a server does not have.

Exact for an error rate; by resampling for means of what was drawn twice, such as the difference of
two methods over seeds and test examples.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
"""So many that the end of a 95 % interval has a standard error of 3 % of its half-width."""

_TINY = 1e-300  # in the place of 0 in a denominator
_STEPS = 60  # of bisection: to the last bit of a probability


def binomial_interval(errors: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval for the error rate behind `errors` in `count` (Clopper and Pearson, 1934).

    It covers the true rate with at least the given probability, for every rate and count.

    Args:
        errors: between 0 and `count`.
        count: independent draws; of none, every rate is possible.
        confidence: strictly between 0 and 1.

    Examples:
        >>> low, high = binomial_interval(0, 59, 0.90)
        >>> low, round(high, 4)
        (0.0, 0.0495)
    """
    if not 0 <= errors <= count:
        raise ValueError(f"errors must lie between 0 and {count}, got {errors}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}")
    tail = (1.0 - confidence) / 2.0
    # P(Binomial(n, p) ≥ k) = I_p(k, n − k + 1): rises with p.
    low = _root(tail, errors, count - errors + 1) if errors else 0.0
    high = _root(1.0 - tail, errors + 1, count - errors) if errors < count else 1.0
    return low, high


def resampled_means(
    tables: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Means of tables over redraws of their rows and of their columns.

    Both are samples: seeds and test examples, or the two sets that an AUROC tells apart. Each is
    redrawn with replacement, independently of the other (the pigeonhole bootstrap: Owen, 2007).
    Drawn are one fewer than there are, which leaves the variance unbiased where there are only
    three (Rao and Wu, 1988). What single cells add counts up to three times, so the means vary too
    much rather than too little. A single row is always drawn: nothing is known of others.

    Args:
        tables: `[..., rows, columns]`, finite. All are redrawn alike, which pairs them.
        resamples: how many times.
        seed: another seed redraws others.

    Returns:
        `[..., resamples]`.
    """
    values = np.asarray(tables, dtype=np.float64)
    if values.ndim < 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"tables must be finite, [..., rows, columns], got {list(values.shape)}")
    generator = np.random.default_rng(seed)
    rows, columns = (_shares(size, resamples, generator) for size in values.shape[-2:])
    means: NDArray[np.float64] = ((rows @ values) * columns).sum(axis=-1)
    return means


def _shares(size: int, resamples: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """How much of each redraw every one of `size` units is, `[resamples, size]`."""
    drawn = max(size - 1, 1)
    return generator.multinomial(drawn, np.full(size, 1.0 / size), size=resamples) / drawn


def percentile_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """What that share of `[n]` resampled values lies between, as much below it as above."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}")
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.asarray(values, dtype=np.float64), [tail, 1.0 - tail])
    return float(low), float(high)


def _root(level: float, a: float, b: float) -> float:
    """The x with I_x(a, b) = `level`."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if beta_cdf(middle, a, b) < level else (low, middle)
    return (low + high) / 2.0


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), for a, b > 0.

    By its continued fraction (DLMF 8.17.22) where that converges fast, x < (a + 1) / (a + b + 2),
    and by I_x(a, b) = 1 − I_{1−x}(b, a) elsewhere.
    """
    if x <= 0.0 or x >= 1.0:
        return min(max(x, 0.0), 1.0)
    if x >= (a + 1.0) / (a + b + 2.0):
        return 1.0 - _below(1.0 - x, b, a)
    return _below(x, a, b)


def _below(x: float, a: float, b: float) -> float:
    """The same by the continued fraction alone."""
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta) / (a * _fraction(x, a, b))


def _fraction(x: float, a: float, b: float) -> float:
    """1 + d₁/(1 + d₂/(1 + …)), by the modified algorithm of Lentz (1976)."""
    value = c = 1.0
    d = 0.0
    step = 0
    while True:
        step += 1
        m, odd = divmod(step, 2)
        if odd:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / _away_from_zero(1.0 + term * d)
        c = _away_from_zero(1.0 + term / c)
        value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
