"""Thresholds that keep a promise: Learn then Test (Angelopoulos et al., 2021) on ranked examples.

A level of strictness in [0, 1] stands for a pair (τ_p, τ_v), and a looser level accepts all that a
stricter one does (`Strictness`). Step k accepts the k strictest of the n tested examples, whatever
their levels are. Its p-value is against "the risk among accepted answers is above the target". The
steps are tested in turn, all at the full error probability δ = 1 − confidence, from a step s that
only n and the pilot decide (`first_step`) to the first that is not rejected; the last before it is
taken. A fixed sequence (Bauer, 1991) needs no part of δ for the pairs that it passes, and as steps
are counted in tested examples, no guess is needed of how many a pair will accept.

**Why it is valid.** A step's pair depends on the tested examples, so this is no fixed sequence of
fixed hypotheses. Let R(t) be the risk among answers stricter than level t, for the risk in
question; let t_k be the level of the example after step k, and −∞ for k = n. Ties between levels
count as broken at random, so that R has no jumps. A bad level has R(t) above target. Bad levels
form intervals (a, b) whose ends are not bad themselves, and at the end b of each, where one comes
in from the strict side, some risk equals its target. With N(t) the number of tested examples
stricter than t:

1. t_s is bad. Given t_s, the s examples before it are independent draws from the answers stricter
   than t_s (Tukey, 1947), so the p-value of step s is valid: it is at most δ with at most
   probability δ.
2. t_s is not bad: it lies between the loose end a of a bad interval (or none) and the strict end b
   of the next, N(a) ≤ s < N(b). To come to any bad level below, the sequence must pass step N(b),
   whose accepted examples are those stricter than b, a *fixed* level at which some risk equals its
   target. Given N(b) they are independent draws from its answers. That N(a) ≤ s too says only that
   few of them are stricter than a, where that risk is at most the target: the others, between a and
   b, have at least the target for their mean, so few of the former make a large sum of losses
   likelier, and the p-value stays valid. (For a loss that is not binary, the bounds behind its
   p-value compare each loss with a Bernoulli variable of its mean, for which the same is true.)

Which of these cases it is, is settled by counts; they exclude each other, and in each one p-value
has to be at most δ, which happens with at most probability δ. So with probability at least
1 − δ *all* levels from t_s to that of the last rejected step keep *all* targets. Nothing is assumed
of the shape of R: it may rise and fall along the levels, and a promise of several risks needs no
correction. The level that is served lies midway between the last accepted example's and the next
one's; since it must not be stricter than t_s, step s itself only opens the sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

SHARE_QUANTILES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Quantiles of the pilot's epistemic share that are tried as κ, see `declare_strictness`."""

_USUAL = 6  # times √n examples for the first step, see `first_step`
_DECIMALS = 12  # of a level: closer ones count as tied
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

    def part(self, index: IntArray) -> "ScoredExamples":
        """Those of the examples, in this order; one that is named twice is there twice."""
        risks = (replace(r, loss=r.loss[index], counted=r.counted[index]) for r in self.risks)
        return ScoredExamples(self.probability[index], self.variance[index], tuple(risks))


@dataclass(frozen=True, slots=True)
class Strictness:
    """Nested pairs of thresholds, one for each level in [0, 1]; at level 0 everything is accepted.

    By the law of total variance the p(1 − p) of a label drawn from the mean distribution splits
    into the mean over the samples of p_m(1 − p_m) and the variance v of p_m. So v ≤ κ · p(1 − p)
    says that at most a share κ of it is the adapter's own disagreement. At level t, τ_p = t and
    τ_v = κ · t(1 − t). Below 1/2, where t(1 − t) would fall again, τ_v rises in a straight line to
    1/4 instead, the largest variance there is.

    Attributes:
        kappa: κ in [0, 1]; with 1 the variance never decides.
    """

    kappa: float

    def levels(self, probability: FloatArray, variance: FloatArray) -> FloatArray:
        """The strictest level that accepts each example, `[n]`."""
        peak = self.kappa / 4.0
        share = np.minimum(variance, peak) / peak if peak else np.zeros_like(variance)
        falling = (1.0 + np.sqrt(1.0 - share)) / 2.0
        rising = (0.25 - variance) / (0.5 - 2.0 * peak) if self.kappa < 1.0 else falling
        by_variance = np.where(variance <= peak, falling, rising)
        level: FloatArray = np.round(np.clip(np.minimum(probability, by_variance), 0, 1), _DECIMALS)
        return level

    def thresholds(self, level: float) -> tuple[float, float]:
        """τ_p and τ_v of a level."""
        if level >= 0.5:
            return level, self.kappa * level * (1.0 - level)
        return level, (self.kappa + (1.0 - self.kappa) * (1.0 - 2.0 * level)) / 4.0


def declare_strictness(pilot: ScoredExamples) -> Strictness:
    """The levels to test, from pilot examples alone.

    κ is the one of `SHARE_QUANTILES`, or 1, with the least area under the pilot's risk–coverage
    curve, the loosest of equals: few examples without a contradiction leave the variance alone.
    """
    p, v = pilot.probability, pilot.variance
    spread = p * (1.0 - p)
    share = np.divide(v, spread, out=np.zeros_like(v), where=spread > 0.0)
    tried = [Strictness(float(min(q, 1.0))) for q in np.quantile(share, SHARE_QUANTILES)]
    tried.append(Strictness(1.0))
    areas = [_area_under_curve(one, pilot) for one in tried]
    return tried[max(range(len(tried)), key=lambda i: (-round(areas[i], 12), i))]


def _area_under_curve(strictness: Strictness, pilot: ScoredExamples) -> float:
    """Mean over the steps of the risk among the accepted."""
    count, loss = Ranked.by(strictness, pilot).totals(pilot.risks[0])
    return float(np.mean(loss / np.maximum(count, 1)))


@dataclass(frozen=True, slots=True)
class Ranked:
    """Examples from the strictest to the loosest; step k accepts the first k.

    Attributes:
        order: `[n]` their indices; ties in an order that does not depend on the examples.
        level: `[n]` of the examples in this order, never rising.
    """

    order: IntArray
    level: FloatArray

    @classmethod
    def by(cls, strictness: Strictness, scored: ScoredExamples) -> "Ranked":
        """Ranked by their levels."""
        level = strictness.levels(scored.probability, scored.variance)
        shuffled = np.random.default_rng(0).permutation(len(level))
        order = shuffled[np.argsort(-level[shuffled], kind="stable")]
        return cls(order, level[order])

    def totals(self, risk: Risk) -> tuple[IntArray, FloatArray]:
        """Counted examples that each step accepts, and the sum of their losses; `[n]`, from 1."""
        counted = risk.counted[self.order]
        return counted.cumsum(), np.where(counted, risk.loss[self.order], 0.0).cumsum()

    def level_of(self, step: int) -> float:
        """A level that accepts the examples of a step and no other; ties must not be parted."""
        last = float(self.level[step - 1])
        below = float(self.level[step]) if step < len(self.level) else max(last - 1e-9, 0.0)
        return (last + below) / 2.0

    def last_whole(self, steps: range) -> int | None:
        """The last of the steps that parts no tie."""
        ends = np.flatnonzero(np.append(self.level[:-1] > self.level[1:], True)) + 1
        within = ends[(ends >= steps.start) & (ends < steps.stop)]
        return int(within[-1]) if len(within) else None


def first_step(n: int, pilot: ScoredExamples, confidence: float) -> int:
    """The step that opens the tests of n examples, by n and by how many the pilot counts.

    Few accepted examples prove nothing: a target of 5 % takes 59 without an error, and one error
    too early ends the sequence. A late step is passed only by an adapter that is good on most
    inputs. So it is the first step that is significant with as many errors as `_USUAL` √n examples
    allow for, or without an error where that takes more. A risk that counts some of the examples
    only has its step where as many of these are expected.
    """
    start = 1
    for risk in pilot.risks:
        # One more that counts: where the pilot has none, the tests may still have some.
        share = (int(risk.counted.sum()) + 1) / (len(risk.counted) + 1)
        counted = round(share * n)
        needed = _first_significant(counted, risk, 1.0 - confidence)
        start = max(start, int(np.ceil(needed / share)))
    return min(start, n)


def _first_significant(n: int, risk: Risk, delta: float) -> int:
    """See `first_step`, for n counted examples."""

    def p_values(errors: IntArray, count: IntArray) -> FloatArray:
        total = np.minimum(errors, count).astype(np.float64)
        return mean_p_value(total, count, risk.target, binary=risk.binary)

    usual = min(int(_USUAL * np.sqrt(n)), n)
    errors = np.arange(usual + 1)
    allowed = np.count_nonzero(p_values(errors, np.full_like(errors, usual)) <= delta) - 1
    count = np.arange(1, n + 1)
    enough = np.flatnonzero(p_values(np.full_like(count, max(allowed, 0)), count) <= delta)
    return int(count[enough[0]]) if len(enough) else n


def step_p_values(ranked: Ranked, risks: Sequence[Risk]) -> FloatArray:
    """p-value of every step, `[n]`, from 1: small where all risks are within their targets.

    A step is bad when one of its risks is above target, a union of hypotheses, for which the
    largest of their p-values is one.
    """
    p_values = np.zeros(len(ranked.order))
    for risk in risks:
        count, loss = ranked.totals(risk)
        p_values = np.maximum(p_values, mean_p_value(loss, count, risk.target, binary=risk.binary))
    return p_values


def choose_steps(
    ranked: Ranked,
    pilot: ScoredExamples,
    tested: ScoredExamples,
    targets: Sequence[float],
    confidence: float,
) -> list[int | None]:
    """How many of the tested examples are accepted at each target, None where none may be.

    The targets go from loose to strict; each is tested on its own, from its own first step, and
    takes no step beyond that of the target before it, so that a stricter target never accepts more.
    The confidence is for each target by itself.
    """
    chosen: list[int | None] = []
    n = limit = len(ranked.order)
    for target in targets:
        start = first_step(n, pilot.aiming_at(target), confidence)
        p_values = step_p_values(ranked, tested.aiming_at(target).risks)
        kept = np.flatnonzero(p_values[start - 1 :] > 1.0 - confidence)
        end = start - 1 + (int(kept[0]) if len(kept) else n + 1 - start)  # the last rejected
        step = ranked.last_whole(range(start + 1, min(end, limit) + 1))
        chosen.append(step)
        limit = step or 0
    return chosen


@dataclass(frozen=True, slots=True)
class LevelRange:
    """Levels of strictness that keep a target, all together with the confidence of the test.

    Attributes:
        first: the strictest of them, where the tests began.
        loosest: the one that accepts the most.
    """

    first: float
    loosest: float


def kept_levels(
    strictness: Strictness,
    pilot: ScoredExamples,
    tested: ScoredExamples,
    targets: Sequence[float],
    confidence: float,
) -> list[LevelRange | None]:
    """The levels that keep each target, None where none is shown to; see `choose_steps`."""
    ranked = Ranked.by(strictness, tested)
    n = len(ranked.order)
    found: list[LevelRange | None] = []
    steps = choose_steps(ranked, pilot, tested, targets, confidence)
    for step, target in zip(steps, targets, strict=True):
        if step is None:
            found.append(None)
        else:
            start = first_step(n, pilot.aiming_at(target), confidence)
            found.append(LevelRange(float(ranked.level[start]), ranked.level_of(step)))
    return found


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
