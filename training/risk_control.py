"""Thresholds that keep a promise: Learn then Test (Angelopoulos et al., 2021), by fallback.

A pair (τ_p, τ_v) is tested against the hypothesis "its risk among accepted answers is above the
target". The pairs form a path from strict to loose on which each accepts all that the one before
it does. The path, and the steps at which testing starts, are declared on pilot examples that are
never tested on; the tests then run from those steps towards looser pairs. With one start all of the
error probability δ = 1 − confidence is spent there, and testing ends at the first pair that is not
rejected. With several starts each has an equal part of δ. A rejection hands the part that it was
tested with on to the next pair, on top of that pair's own; a pair that is not rejected loses it
(the fallback procedure; Wiens and Dmitrienko, 2005). The first bad pair of the path is tested with
at most the parts of the starts up to it, the next bad one with at most those of the starts in
between, and so on: together at most δ. So all rejected pairs keep the target together with
probability at least 1 − δ over the draw of the tested examples.

The number of accepted examples, m, is random. Given m, they are m independent draws from the
distribution of accepted answers, so their errors are Binomial(m, risk): the p-value is valid for
every m, hence also without knowing m.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

STEPS = 50
"""Steps of the path in τ_p: each accepts about 2 % more of the pilot examples."""

SHARE_QUANTILES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Quantiles of the pilot's epistemic share that are tried as κ, see `declare_path`."""

_TAIL = 10  # steps in τ_v after τ_p has reached its end
_ERRORS = 6  # errors that the first test should survive, see `declare_starts`
_SHARES = (1 / 3, 1 / 2)  # of all accepted examples, at most so many for a start
_ROUNDING = 1e-9  # of a sum of losses


@dataclass(frozen=True, slots=True)
class Risk:
    """A mean that must stay within a target among accepted examples.

    Attributes:
        loss: `[n]`, each in [0, 1].
        counted: `[n]`, whether an example enters the mean if it is accepted.
        target: largest mean that is acceptable, on the scale of `loss`.
        binary: whether a loss can only be 0 or 1, whatever the data: then the test is exact.
    """

    loss: FloatArray
    counted: BoolArray
    target: float
    binary: bool = True


@dataclass(frozen=True, slots=True)
class ScoredExamples:
    """Labelled examples as the tests see them.

    Attributes:
        probability: `[n]` mean probability of the predicted label.
        variance: `[n]` its variance over the samples.
        risks: all must hold; the first is the one whose target can be varied.
    """

    probability: FloatArray
    variance: FloatArray
    risks: tuple[Risk, ...]

    def aiming_at(self, target: float) -> "ScoredExamples":
        """The same with another target for the first risk."""
        first, *rest = self.risks
        return replace(self, risks=(replace(first, target=target), *rest))


@dataclass(frozen=True, slots=True)
class ThresholdPath:
    """Nested pairs of thresholds, from strict to loose.

    Attributes:
        min_probability: τ_p, `[S]`, never rising.
        max_variance: τ_v, `[S]`, never falling.
    """

    min_probability: FloatArray
    max_variance: FloatArray

    def __len__(self) -> int:
        return len(self.min_probability)

    def first_step(self, probability: FloatArray, variance: FloatArray) -> IntArray:
        """First step that accepts each example, `[n]`; S where none does."""
        by_probability = np.searchsorted(-self.min_probability, -probability)
        by_variance = np.searchsorted(self.max_variance, variance)
        return np.maximum(by_probability, by_variance).astype(np.int64)

    def totals(self, scored: ScoredExamples, risk: Risk) -> tuple[IntArray, FloatArray]:
        """Number of counted examples that each step accepts, and the sum of their losses, `[S]`."""
        step = self.first_step(scored.probability, scored.variance)[risk.counted]
        size = len(self) + 1  # the last bin: never accepted
        count = np.bincount(step, minlength=size)[:-1].cumsum()
        loss = np.bincount(step, weights=risk.loss[risk.counted], minlength=size)[:-1].cumsum()
        return count.astype(np.int64), loss


def declare_path(pilot: ScoredExamples, steps: int = STEPS) -> ThresholdPath:
    """The path to test, from pilot examples alone.

    By the law of total variance the p(1 − p) of a label drawn from the mean distribution splits
    into the mean over the samples of p_m(1 − p_m) and the variance v of p_m. So v ≤ κ · p(1 − p)
    says that at most a share κ of it is the adapter's own disagreement. The path lowers τ_p through
    quantiles of the pilot's probabilities with τ_v = κ · τ_p(1 − τ_p); κ is the one of
    `SHARE_QUANTILES` with the least area under the pilot's risk–coverage curve, the loosest of
    equals. At its end τ_v rises to the largest variance of the pilot and no further: an answer
    with more disagreement than any that was seen is never accepted.
    """
    p, v = pilot.probability, pilot.variance
    spread = p * (1.0 - p)
    share = np.divide(v, spread, out=np.zeros_like(v), where=spread > 0.0)
    floors = np.unique(np.quantile(p, np.linspace(0.0, 1.0, steps + 1)))[::-1]
    tail = np.unique(np.quantile(v, np.linspace(0.0, 1.0, _TAIL + 1)))
    paths = [_path(floors, tail, float(np.quantile(share, q))) for q in SHARE_QUANTILES]
    areas = [_area_under_curve(path, pilot) for path in paths]
    return paths[max(range(len(paths)), key=lambda i: (-round(areas[i], 12), i))]


def _path(floors: FloatArray, tail: FloatArray, kappa: float) -> ThresholdPath:
    # Below a probability of 1/2 the spread falls again; the path must not.
    limits = np.maximum.accumulate(kappa * floors * (1.0 - floors))
    limits = np.minimum(limits, tail[-1])
    looser = tail[tail > limits[-1]]
    return ThresholdPath(
        np.append(floors, np.full(len(looser), floors[-1])), np.append(limits, looser)
    )


def _area_under_curve(path: ThresholdPath, pilot: ScoredExamples) -> float:
    """Mean over the pilot of the risk at the step that first accepts each example."""
    count, loss = path.totals(pilot, pilot.risks[0])
    risk = loss / np.maximum(count, 1)
    return float(np.sum(np.diff(count, prepend=0) * risk) / max(int(count[-1]), 1))


def declare_starts(
    path: ThresholdPath, pilot: ScoredExamples, tested: int, confidence: float
) -> tuple[int, ...]:
    """The steps to start testing at: the strictest that are likely to accept enough for a verdict.

    Strict pairs keep a target best, but few accepted examples prove nothing: a target of 5 % takes
    59 without an error. So testing starts where `tested` examples like the pilot's are expected to
    accept as many as stay significant with `_ERRORS` errors among them, or with fewer when that
    would be more than a third of all; and at the same for half of all, where that is another step.
    Only how many the pilot accepts is used, which it shows more exactly than the errors among them:
    starting at the pilot's lowest error misses the target twice as often. On small sets half of all
    is the better start for an adapter that is good on most inputs, a third for one that is good on
    few.
    """
    starts = set()
    for share in _SHARES:
        start = 0
        for risk in pilot.risks:
            count, _ = path.totals(pilot, risk)
            expected = count * (tested / len(pilot.probability))  # [S]
            needed = [_enough(errors, tested, risk, confidence) for errors in range(_ERRORS + 1)]
            fitting = [m for m in needed if m <= share * expected[-1]]
            enough = np.flatnonzero(expected >= (fitting[-1] if fitting else needed[0]))
            start = max(start, int(enough[0]) if len(enough) else len(path) - 1)
        starts.add(start)
    return tuple(sorted(starts))


def _enough(errors: int, most: int, risk: Risk, confidence: float) -> int:
    """Fewest examples that reject with so many errors among them; `most` + 1 if `most` do not."""
    count = np.arange(1, most + 1)
    total = np.full(most, float(errors))
    p_values = mean_p_value(np.minimum(total, count), count, risk.target, binary=risk.binary)
    rejecting = np.flatnonzero(p_values <= 1.0 - confidence)
    return int(count[rejecting[0]]) if len(rejecting) else most + 1


def fallback(p_values: FloatArray, starts: Sequence[int], delta: float) -> IntArray:
    """The hypotheses that are rejected, ascending; from one start, a fixed sequence.

    Args:
        p_values: `[S]`, in the order of the tests.
        starts: one or more, ascending; each has an equal part of `delta`.
        delta: probability of a false rejection among all.
    """
    rejected, level = [], 0.0
    for step in range(starts[0], len(p_values)):
        level += delta / len(starts) if step in starts else 0.0
        if not level or p_values[step] > level:
            level = 0.0
        else:
            rejected.append(step)
    return np.array(rejected, dtype=np.int64)


def path_p_values(path: ThresholdPath, tested: ScoredExamples) -> FloatArray:
    """p-value of every step, `[S]`: small where all of its risks are within their targets.

    A step is bad when one of its risks is above target, a union of hypotheses, for which the
    largest of their p-values is one.
    """
    p_values = np.zeros(len(path))
    for risk in tested.risks:
        count, loss = path.totals(tested, risk)
        p_values = np.maximum(p_values, mean_p_value(loss, count, risk.target, binary=risk.binary))
    return p_values


def choose_steps(
    path: ThresholdPath,
    pilot: ScoredExamples,
    tested: ScoredExamples,
    targets: Sequence[float],
    confidence: float,
) -> list[int | None]:
    """The loosest step that keeps each target, None when none does.

    The targets go from loose to strict; each is tested on its own, from its own starts, and takes
    no step beyond that of the target before it, so that a stricter target never accepts more. The
    confidence is for each target by itself.
    """
    chosen: list[int | None] = []
    limit, tested_count = len(path) - 1, len(tested.probability)
    for target in targets:
        starts = declare_starts(path, pilot.aiming_at(target), tested_count, confidence)
        p_values = path_p_values(path, tested.aiming_at(target))
        rejected = fallback(p_values, starts, 1.0 - confidence)
        limit = max((step for step in rejected.tolist() if step <= limit), default=-1)
        chosen.append(limit if limit >= 0 else None)
    return chosen


def mean_p_value(
    total: FloatArray, count: IntArray, target: float, *, binary: bool = True
) -> FloatArray:
    """p-value of "the mean of a loss in [0, 1] is above `target`" after `count` draws.

    Exact for a binary loss: P(Binomial(count, target) ≤ total). Otherwise Hoeffding–Bentkus
    (Bates et al., 2021, section 3.1). 1 where nothing was drawn.

    Args:
        total: sum of the losses.
        count: number of draws, of the same shape.
        target: the mean to test against; from 1 on it cannot be exceeded, and p is 0.
        binary: whether the loss is 0 or 1.
    """
    if target >= 1.0:
        return np.where(count > 0, 0.0, 1.0)
    if binary:
        p_value = stats.binom.cdf(np.round(total), count, target)
    else:
        mean = np.minimum(total / np.maximum(count, 1), target)
        # ∞ where a loss is possible and its target is 0; no draw then says nothing.
        entropy = special.rel_entr(mean, target) + special.rel_entr(1.0 - mean, 1.0 - target)
        hoeffding = np.exp(-count * np.where(count > 0, entropy, 0.0))
        bentkus = np.e * stats.binom.cdf(np.ceil(total - _ROUNDING), count, target)
        p_value = np.minimum(np.minimum(hoeffding, bentkus), 1.0)
    result: FloatArray = np.where(count > 0, p_value, 1.0)
    return result


def upper_limit(total: float, count: int, confidence: float, *, binary: bool = True) -> float:
    """Upper confidence limit of a mean loss: the targets above it are those that are rejected.

    Clopper–Pearson's for a binary loss, else the inverse of Hoeffding–Bentkus.
    """
    if count == 0:
        return 1.0
    if binary:
        errors = round(total)
        if errors == count:
            return 1.0
        return float(stats.beta.ppf(confidence, errors + 1, count - errors))
    low, high = total / count, 1.0
    sums, counts = np.array([total]), np.array([count])
    while high - low > 1e-9:
        middle = (low + high) / 2.0
        rejected = mean_p_value(sums, counts, middle, binary=False)[0] <= 1.0 - confidence
        low, high = (low, middle) if rejected else (middle, high)
    return high
