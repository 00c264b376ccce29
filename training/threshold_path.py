"""Pairs of thresholds that are declared before they are tested, and the order of their tests.

A pair (τ_p, τ_v) is tested against the hypothesis "its risk among accepted answers is above the
target". The pairs form a path from strict to loose on which each accepts all that the one before it
does. Tests run from one or more steps of it towards looser pairs. Each start has an equal part of
the error probability δ. A rejection hands the part that it was tested with on to the next pair, on
top of that pair's own; a pair that is not rejected loses it (the fallback procedure; Wiens and
Dmitrienko, 2005). The first bad pair of the path is tested with at most the parts of the starts up
to it, the next bad one with at most those of the starts in between, and so on: together at most δ.
So all rejected pairs keep the target together with probability at least 1 − δ.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.risk_control import FloatArray, IntArray, Risk, ScoredExamples

STEPS = 50
"""Steps of the path in τ_p: each accepts about 2 % more of the pilot examples."""

SHARE_QUANTILES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Quantiles of the pilot's epistemic share that are tried as κ, see `declare_path`."""

_TAIL = 10  # steps in τ_v after τ_p has reached its end


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


def steps_accepting(
    path: ThresholdPath, pilot: ScoredExamples, shares: Sequence[float]
) -> tuple[int, ...]:
    """The first steps that accept these shares of what each risk counts in the pilot, ascending."""
    counts = [path.totals(pilot, risk)[0] for risk in pilot.risks]
    steps = {
        max(int(np.searchsorted(count, share * count[-1])) for count in counts) for share in shares
    }
    return tuple(sorted(steps))


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
