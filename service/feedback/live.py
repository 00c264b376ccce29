"""What feedback says about answers, in numbers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from dalorra.decision.intervals import binomial_interval
from dalorra.decision.promise_watch import PromiseWatch

CONFIDENCE = 0.95
"""Of the interval of the live error."""


class Group(NamedTuple):
    """Judged answers that are alike.

    Attributes:
        accepted: whether the policy accepts them.
        correct: whether they were right.
        bin: number of their confidence bin, as in `dalorra.decision.metrics.reliability_bins`.
        size: how many.
        confidence: sum of their probabilities.
    """

    accepted: bool
    correct: bool
    bin: int
    size: int
    confidence: float


@dataclass(frozen=True, slots=True)
class LiveFigures:
    """What feedback says about the answers of one policy.

    Attributes:
        judged: answers with feedback that are kept.
        accepted: those of them that the policy accepts.
        errors: those of the accepted that were wrong.
        error: their share; NaN where none is accepted.
        lower, upper: Clopper and Pearson's interval of that share.
        ece: expected calibration error of all judged; NaN where there is none.
        e_value: evidence against the promise; NaN where nothing is promised.
        broken: whether it was ever enough to say that the promise is broken.
    """

    judged: int = 0
    accepted: int = 0
    errors: int = 0
    error: float = math.nan
    lower: float = math.nan
    upper: float = math.nan
    ece: float = math.nan
    e_value: float = math.nan
    broken: bool = False


def measure(groups: Iterable[Group], watch: PromiseWatch | None, alpha: float) -> LiveFigures:
    """What feedback says about one policy.

    Args:
        groups: of the judged answers.
        watch: of the promise, if there is one.
        alpha: probability of calling a kept promise broken, over all time.
    """
    groups = list(groups)
    judged = sum(group.size for group in groups)
    accepted = sum(group.size for group in groups if group.accepted)
    errors = sum(group.size for group in groups if group.accepted and not group.correct)
    lower, upper = binomial_interval(errors, accepted, CONFIDENCE)
    return LiveFigures(
        judged=judged,
        accepted=accepted,
        errors=errors,
        error=errors / accepted if accepted else math.nan,
        lower=lower if accepted else math.nan,
        upper=upper if accepted else math.nan,
        ece=_calibration_error(groups) / judged if judged else math.nan,
        e_value=watch.e_value if watch else math.nan,
        broken=watch.broken(alpha) if watch else False,
    )


def _calibration_error(groups: Iterable[Group]) -> float:
    """Σ over the bins of |right answers − sum of the confidences| (DALorRA, Eq. 8, times n)."""
    gaps: dict[int, float] = defaultdict(float)
    for group in groups:
        gaps[group.bin] += group.correct * group.size - group.confidence
    return sum(map(abs, gaps.values()))
