"""Methods compared on the same test examples with the same seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

import numpy as np

from dalorra.decision.intervals import percentile_interval, resampled_means
from training.experiments.predictions import KeptAnswers
from training.experiments.results import Result

LOSSES: Final = ("nll", "brier")
"""The scores that are means over examples, in the order of `KeptAnswers.losses`."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How much more a method loses than another, on average over seeds and examples.

    Attributes:
        mean: over the seeds that both have.
        low, high: 95 % interval over the draw of the examples and, where there are several, of the
            seeds.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def by_nll(variants: Mapping[str, list[Result]], scored: str) -> dict[str, list[Result]]:
    """Variants in the order of their mean NLL, the best first."""
    return dict(sorted(variants.items(), key=lambda item: fmean(r[scored]["nll"] for r in item[1])))


def differences(
    runs: Sequence[Result], best: Sequence[Result], scored: str
) -> dict[str, Difference] | None:
    """Of each of `LOSSES` how much more the runs lose than those of another method.

    Methods are compared, not the adapters at hand, so seeds are redrawn as well as examples. Means
    over the seeds would pass for all there is to know of a method, and an interval around them says
    95 % and covers less.

    Args:
        runs: of one method, a seed each.
        best: of the other method.
        scored: `test` or `tempered`.

    Returns:
        None where the answers were not kept or the methods have no seed in common.

    Raises:
        ConfigError: the answers are to different examples, or in another order.
    """
    ours, theirs = ({run["seed"]: run["kept"] for run in some} for some in (runs, best))
    seeds = [seed for seed in ours if ours[seed] and theirs.get(seed)]
    if not seeds:
        return None
    first: KeptAnswers = ours[seeds[0]]
    for seed in seeds:
        for kept in (ours[seed], theirs[seed]):
            kept.require_same_examples(first)
    losses = np.stack([ours[s].losses(scored) - theirs[s].losses(scored) for s in seeds], axis=1)
    return {
        name: Difference(float(table.mean()), *percentile_interval(means))
        for name, table, means in zip(LOSSES, losses, resampled_means(losses), strict=True)
    }
