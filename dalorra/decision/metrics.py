"""Scores of probabilities and of uncertainties, in float64 numpy alone.

Conventions, used by every function here:

* `probabilities` is `[n, K]`, each row a distribution over K labels; `targets` is `[n]`, the index
  of the true label.
* `confidence` is `[n]` in [0, 1], the probability of the predicted label; `correct` is `[n]`, true
  where the predicted label is the true one.
* `uncertainty` is `[n]`, any finite score that is higher where an answer deserves less trust: the
  variance, the entropy, or minus the confidence.
* Examples with equal uncertainty are never ordered by chance or by position: a score either treats
  the tied group as one, or takes the expectation over its orders.

Wrong shapes, an empty set and non-finite numbers raise `ValueError`. A score that does not exist,
such as the AUROC of a set without errors, is NaN.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

ECE_BINS = 15
"""Number of confidence bins of both papers' calibration error (DALorRA, appendix A.2)."""

_SUM_TOLERANCE = 1e-4  # rows that come from a float32 softmax


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """The examples with confidence in (lower, upper].

    Attributes:
        lower, upper: edges of the bin.
        count: number of examples in it.
        accuracy: share of them that is correct; NaN when empty.
        confidence: their mean confidence; NaN when empty.
    """

    lower: float
    upper: float
    count: int
    accuracy: float
    confidence: float


@dataclass(frozen=True, slots=True)
class QuantileBin:
    """One of several groups of equal size, in order of uncertainty.

    Attributes:
        lower, upper: smallest and largest uncertainty in the group.
        count: number of examples in it.
        error: error rate in it.
    """

    lower: float
    upper: float
    count: int
    error: float


def accuracy(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Share of examples whose most probable label is the true one (DALorRA, Eq. 6).

    A tie between labels goes to the first of them, as in `argmax`.

    Examples:
        >>> accuracy([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]], [0, 1, 1])
        0.6666666666666666
    """
    p, y = _distributions(probabilities, targets)
    return float(np.mean(p.argmax(axis=1) == y))


def negative_log_likelihood(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Mean over the examples of −log p(true label), in nats (DALorRA, Eq. 7).

    A probability of zero counts as the smallest normal float64, 2.2e-308, so that one impossible
    answer costs 708.4 nats instead of making the mean infinite.

    Examples:
        >>> negative_log_likelihood([[0.5, 0.5], [0.25, 0.75]], [0, 0])
        1.0397207708399179
    """
    p, y = _distributions(probabilities, targets)
    chosen = np.maximum(p[np.arange(len(y)), y], np.finfo(np.float64).tiny)
    return float(-np.mean(np.log(chosen)))


def brier_score(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Mean over the examples of Σ_k (p_k − 1[k is true])², between 0 and 2.

    The multi-class form (Brier, 1950). For two labels it is twice the form with one probability.

    Examples:
        >>> brier_score([[1.0, 0.0], [0.5, 0.5]], [0, 0])
        0.25
    """
    p, y = _distributions(probabilities, targets)
    truth = np.eye(p.shape[1])[y]
    return float(np.mean(np.sum((p - truth) ** 2, axis=1)))


def reliability_bins(
    confidence: ArrayLike, correct: ArrayLike, *, bins: int = ECE_BINS
) -> list[ReliabilityBin]:
    """Groups examples into equally wide confidence bins (lo, hi] (DALorRA, Eq. 9 and 10).

    Confidence 0 goes to the first bin, so that no example is lost; confidence 1 is in the last.

    Returns:
        `bins` bins from 0 to 1, the empty ones included.
    """
    conf, right = _scored(confidence, correct)
    if conf.min() < 0.0 or conf.max() > 1.0:
        raise ValueError("confidence must lie between 0 and 1")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    # i / bins is the float nearest to each edge, so 0.2 falls on the edge 3/15 and not beside it.
    edges = np.arange(bins + 1) / bins  # [bins + 1]
    index = np.maximum(np.searchsorted(edges, conf, side="left") - 1, 0)  # [n]
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        acc = np.bincount(index, weights=right, minlength=bins) / count
        mean = np.bincount(index, weights=conf, minlength=bins) / count
    return [
        ReliabilityBin(float(lo), float(hi), int(n), float(a), float(c))
        for lo, hi, n, a, c in zip(edges[:-1], edges[1:], count, acc, mean, strict=True)
    ]


def expected_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, *, bins: int = ECE_BINS
) -> float:
    """Σ_b (n_b / n) · |accuracy_b − confidence_b| over `reliability_bins` (DALorRA, Eq. 8).

    Examples:
        >>> round(expected_calibration_error([0.9, 0.9, 0.7], [True, False, True]), 12)
        0.366666666667
    """
    filled = [b for b in reliability_bins(confidence, correct, bins=bins) if b.count]
    total = sum(b.count for b in filled)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in filled) / total


def calibration_error_by_chance(bins: Iterable[tuple[int, float]]) -> float:
    """The ECE that answers with these confidences have on average when they are calibrated.

    Of n answers with confidence c, X ~ Binomial(n, c) are right, and

        E|X − nc| = 2 (1 − c) k P(X = k),   k = ⌊nc⌋ + 1        (de Moivre, 1730)

    Args:
        bins: number of answers and mean confidence of each bin with answers. Those of one bin count
            as equally confident, which is a little too much: their confidences differ.

    Returns:
        Between 0 and 1; an ECE that is not above it says nothing against a calibration.

    Examples:
        >>> calibration_error_by_chance([(1, 0.5), (3, 1.0)])
        0.125
    """
    total, answers = 0.0, 0
    for n, c in bins:
        answers += n
        k = math.floor(n * c) + 1
        if k <= n and c > 0.0:
            ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
            total += 2.0 * k * math.exp(ways + k * math.log(c) + (n - k + 1) * math.log1p(-c))
    return total / answers


def auroc(uncertainty: ArrayLike, correct: ArrayLike) -> float:
    """Probability that a wrong answer is more uncertain than a right one, ties counting half.

    By the Mann–Whitney statistic; 0.5 is chance. NaN when all answers are right, or all wrong.

    Examples:
        >>> auroc([0.1, 0.2, 0.3, 0.4], [True, True, False, True])
        0.6666666666666666
    """
    u, right = _scored(uncertainty, correct)
    wrong = ~right
    n_wrong, n_right = int(wrong.sum()), int(right.sum())
    if not n_wrong or not n_right:
        return float("nan")
    u_statistic = _average_ranks(u)[wrong].sum() - n_wrong * (n_wrong + 1) / 2
    return float(u_statistic / (n_wrong * n_right))


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's ρ: the correlation of the ranks of two `[n]` scores, ties sharing a rank.

    NaN when either is constant, or n is 1.
    """
    a, b = _vector(x, "x"), _vector(y, "y")
    if a.shape != b.shape:
        raise ValueError(f"x and y must be equally long, got {len(a)} and {len(b)}")
    ra, rb = _average_ranks(a), _average_ranks(b)
    ra, rb = ra - ra.mean(), rb - rb.mean()
    scale = np.sqrt(np.sum(ra * ra) * np.sum(rb * rb))
    return float(np.sum(ra * rb) / scale) if scale > 0.0 else float("nan")


def error_by_quantile(
    uncertainty: ArrayLike, correct: ArrayLike, *, quantiles: int = 10
) -> list[QuantileBin]:
    """Error rate in groups of equal size, from the most certain to the least.

    The figure that BayesLoRA draws over deciles of the variance (section 6.2). Group sizes differ
    by at most one, the earlier ones being larger. Each of several examples with equal uncertainty
    counts with the mean error of all of them, so the result does not depend on their order.
    """
    u, right = _scored(uncertainty, correct)
    if not 1 <= quantiles <= len(u):
        raise ValueError(f"quantiles must lie between 1 and n = {len(u)}, got {quantiles}")
    values, count, wrong = _tied_groups(u, right)
    ordered = np.repeat(values, count)  # [n]
    error = np.repeat(wrong / count, count)  # [n]
    return [
        QuantileBin(float(group[0]), float(group[-1]), len(group), float(part.mean()))
        for group, part in zip(
            np.array_split(ordered, quantiles), np.array_split(error, quantiles), strict=True
        )
    ]


def risk_coverage_curve(
    uncertainty: ArrayLike, correct: ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Error rate among the i most certain of n examples, i = 1 … n.

    Returns:
        coverage `[n]`, i / n; and risk `[n]`, the expected error rate when examples of equal
        uncertainty are taken in random order (Geifman and El-Yaniv, 2017).
    """
    u, right = _scored(uncertainty, correct)
    _, count, wrong = _tied_groups(u, right)
    # The expected number of errors grows by the group's error rate with every member taken.
    errors = np.cumsum(np.repeat(wrong / count, count))
    taken = np.arange(1, len(u) + 1)
    return taken / len(u), errors / taken


def aurc(uncertainty: ArrayLike, correct: ArrayLike) -> float:
    """Area under the risk–coverage curve: its mean risk over all n coverages. Lower is better.

    Examples:
        >>> round(aurc([0.1, 0.2, 0.3], [True, False, True]), 12)
        0.277777777778
    """
    _, risk = risk_coverage_curve(uncertainty, correct)
    return float(risk.mean())


def acceptance_at_error(uncertainty: ArrayLike, correct: ArrayLike, error: float) -> float:
    """Largest share that can be accepted with an error rate among accepted of at most `error`.

    Accepts everything up to a threshold on the uncertainty, ties together; 0 when no threshold
    does. The threshold is chosen on the same data, so this is optimistic about new data.

    Examples:
        >>> acceptance_at_error([0.1, 0.2, 0.3, 0.4], [True, True, False, False], 0.34)
        0.75
    """
    u, right = _scored(uncertainty, correct)
    if not 0.0 <= error <= 1.0:
        raise ValueError(f"error must lie between 0 and 1, got {error}")
    _, count, wrong = _tied_groups(u, right)
    accepted = np.cumsum(count)
    allowed = accepted[np.cumsum(wrong) / accepted <= error]
    return float(allowed[-1] / len(u)) if len(allowed) else 0.0


def _vector(values: ArrayLike, name: str) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name} must be a non-empty vector, got shape {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite")
    return array


def _scored(score: ArrayLike, correct: ArrayLike) -> tuple[FloatArray, BoolArray]:
    values, right = _vector(score, "the score"), np.asarray(correct)
    if right.shape != values.shape:
        raise ValueError(f"correct must be [{len(values)}], got {list(right.shape)}")
    if not np.isin(right, (0, 1)).all():
        raise ValueError("correct must hold booleans")
    return values, right.astype(np.bool_)


def _distributions(probabilities: ArrayLike, targets: ArrayLike) -> tuple[FloatArray, IntArray]:
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    if p.ndim != 2 or not p.size:
        raise ValueError(f"probabilities must be [n, K], got shape {list(p.shape)}")
    if not (np.isfinite(p).all() and p.min() >= 0.0):
        raise ValueError("probabilities must be finite and not negative")
    if np.abs(p.sum(axis=1) - 1.0).max() > _SUM_TOLERANCE:
        raise ValueError("each row of probabilities must sum to 1")
    if y.shape != p.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"targets must be {len(p)} integers, got {y.dtype} {list(y.shape)}")
    if y.min() < 0 or y.max() >= p.shape[1]:
        raise ValueError(f"targets must lie between 0 and {p.shape[1] - 1}")
    return p, y.astype(np.int64)


def _average_ranks(values: FloatArray) -> FloatArray:
    """Ranks from 1 to n; equal values share the mean of the ranks that they span."""
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks: FloatArray = (last - (count - 1) / 2)[inverse]
    return ranks


def _tied_groups(
    uncertainty: FloatArray, right: BoolArray
) -> tuple[FloatArray, IntArray, FloatArray]:
    """Distinct uncertainties, ascending, with how many examples share each, and their errors."""
    values, inverse, count = np.unique(uncertainty, return_inverse=True, return_counts=True)
    wrong = np.bincount(inverse, weights=~right, minlength=len(values)).astype(np.float64)
    return values, count.astype(np.int64), wrong
