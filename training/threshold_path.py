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

from training.risk_control import (
    FloatArray,
    IntArray,
    Risk,
    ScoredExamples,
    Strictness,
    declare_strictness,
)

STEPS = 50
"""Steps of the path: each accepts about 2 % more of the pilot examples."""

_HAIR = 1e-9  # by which a step is looser than the example it is named after


@dataclass(frozen=True, slots=True)
class ThresholdPath:
    """Nested pairs of thresholds, from strict to loose.

    Attributes:
        strictness: which pair a level stands for.
        levels: of the steps, `[S]`, falling.
        max_variance: no step accepts more.
    """

    strictness: Strictness
    levels: FloatArray
    max_variance: float = 0.25

    def __len__(self) -> int:
        return len(self.levels)

    def first_step(self, probability: FloatArray, variance: FloatArray) -> IntArray:
        """First step that accepts each example, `[n]`; S where none does."""
        strictest = self.strictness.levels(probability, variance)
        step = np.searchsorted(-self.levels, -strictest).astype(np.int64)
        return np.where(variance <= self.max_variance, step, len(self))

    def totals(self, scored: ScoredExamples, risk: Risk) -> tuple[IntArray, FloatArray]:
        """Number of counted examples that each step accepts, and the sum of their losses, `[S]`."""
        step = self.first_step(scored.probability, scored.variance)[risk.counted]
        size = len(self) + 1  # the last bin: never accepted
        count = np.bincount(step, minlength=size)[:-1].cumsum()
        loss = np.bincount(step, weights=risk.loss[risk.counted], minlength=size)[:-1].cumsum()
        return count.astype(np.int64), loss

    def thresholds(self, step: int) -> tuple[float, float]:
        """τ_p and τ_v of a step."""
        min_probability, max_variance = self.strictness.thresholds(float(self.levels[step]))
        return min_probability, min(max_variance, self.max_variance)


def declare_path(pilot: ScoredExamples, steps: int = STEPS) -> ThresholdPath:
    """The path to test, from pilot examples alone.

    Its levels are quantiles of theirs. The last accepts all of them; an answer with more variance
    than any of theirs is never accepted.
    """
    strictness = declare_strictness(pilot)
    seen = strictness.levels(pilot.probability, pilot.variance)
    levels = np.unique(np.quantile(seen, np.linspace(0.0, 1.0, steps + 1)))[::-1]
    return ThresholdPath(
        strictness, np.maximum(levels - _HAIR, 0.0), float(pilot.variance.max(initial=0.0))
    )


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
