"""Whether uncertainty tells other data from the data that an adapter was trained for."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from dalorra.decision import metrics
from dalorra.decision.predictive import Prediction

SCORES: Mapping[str, Callable[[Prediction], float]] = {
    "variance": lambda p: p.variance,
    "entropy": lambda p: p.entropy,
    "mutual_information": lambda p: p.mutual_information,
    "probability": lambda p: -p.probability,
}
"""Name → score that is higher where an answer deserves less trust."""


def tell_apart(inside: Sequence[Prediction], outside: Sequence[Prediction]) -> dict[str, Any]:
    """AUROC of each score for data from elsewhere, and how sure the adapter is of its answers.

    Args:
        inside: answers to the test set.
        outside: answers to the other data.
    """
    is_inside = [True] * len(inside) + [False] * len(outside)
    both = [*inside, *outside]
    return {
        "auroc_shift": {
            name: metrics.auroc([score(p) for p in both], is_inside)
            for name, score in SCORES.items()
        },
        "mean_probability": fmean(p.probability for p in outside),
        "mean_variance": fmean(p.variance for p in outside),
    }
