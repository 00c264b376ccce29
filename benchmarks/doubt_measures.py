"""Measures that might tell an open input from an unknown one, and how well each does."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any, Final, Literal, Self

import numpy as np

from dalorra.decision.metrics import FloatArray, auroc
from dalorra.decision.policy import Decision, Policy
from dalorra.decision.predictive import Prediction

Group = Literal["usual", "ambiguous", "unknown"]
Half = Literal["development", "test"]
HALVES: Final[tuple[Half, ...]] = ("development", "test")

CHANCE: Final = 0.5
"""AUROC of a measure that tells nothing."""

_RESAMPLES: Final = 1000
_TINY: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Doubt:
    """An input of known making, and what an adapter answers.

    Attributes:
        half: what the text was made of: thresholds are chosen on one half's.
        group: whether two labels fit it, or none is known.
        kind: how it was made.
        text: the input.
        prediction: the answer.
    """

    half: Half
    group: Group
    kind: str
    text: str
    prediction: Prediction


@dataclass(frozen=True, slots=True)
class Study:
    """What one adapter answers to all inputs, under the policy that it is judged with."""

    task: str
    policy: Policy
    doubts: Sequence[Doubt]

    def refused(self, half: Half, group: Group) -> list[Prediction]:
        """The answers that are not accepted."""
        return [
            one.prediction
            for one in self.doubts
            if (one.half, one.group) == (half, group)
            and self.policy.decide(one.prediction).decision is not Decision.ACCEPT
        ]

    def save(self, path: Path) -> None:
        """Writes what `read` reads."""
        path.parent.mkdir(parents=True, exist_ok=True)
        doubts = [asdict(one) for one in self.doubts]
        policy = self.policy.model_dump_json()
        path.write_text(json.dumps([self.task, policy, doubts], ensure_ascii=False), "utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `save` wrote."""
        task, policy, doubts = json.loads(path.read_text("utf-8"))
        return cls(
            task,
            Policy.model_validate_json(policy),
            [Doubt(**{**one, "prediction": Prediction(**one["prediction"])}) for one in doubts],
        )


def _share(p: Prediction) -> float:
    return p.variance / max(p.probability * (1 - p.probability), _TINY)


def _mutual_share(p: Prediction) -> float:
    return p.mutual_information / max(p.entropy, _TINY)


def _log_odds_variance(p: Prediction) -> float:
    """Over the samples, of the label's log-odds."""
    q = np.clip(p.sample_probabilities, _TINY, 1 - _TINY)
    return float(np.var(np.log(q) - np.log1p(-q)))


def _first_two(p: Prediction) -> tuple[float, float]:
    first, second, *_ = sorted(p.probabilities.values(), reverse=True)
    return first, second


CHOSEN: Final = "novelty p-value"
OF_SAMPLES: Final = ("v / p(1 − p)", "I / entropy", "variance of the log-odds")
"""Measures of how far the samples disagree, whatever the probability is."""

MEASURES: Final[Mapping[str, Callable[[Prediction], float]]] = MappingProxyType(
    {
        "variance v": lambda p: p.variance,
        "v / p(1 − p)": _share,
        "mutual information I": lambda p: p.mutual_information,
        "I / entropy": _mutual_share,
        "variance of the log-odds": _log_odds_variance,
        "entropy": lambda p: p.entropy,
        "expected entropy": lambda p: p.entropy - p.mutual_information,
        "entropy / log K": lambda p: p.entropy / math.log(len(p.probabilities)),
        "probability p": lambda p: p.probability,
        "first label − second": lambda p: _first_two(p)[0] - _first_two(p)[1],
        "first label + second": lambda p: sum(_first_two(p)),
        CHOSEN: lambda p: p.novelty or 0.0,
        "novelty p-value · I / entropy": lambda p: (p.novelty or 0.0) * _mutual_share(p),
    }
)
"""Name → the measure. Which side of it is ambiguous is found on the development half."""


def compared(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """Every measure on every adapter and half, among what is not accepted.

    One threshold and one side serve all adapters: those for which, on the development half, the
    mean over the adapters of (share of the ambiguous on the side) − (share of the unknown) is
    largest.

    Returns:
        a line for each: `auroc` of the ambiguous above the unknown, with a bootstrap interval;
        threshold and side; the share of each group that lies there.
    """
    return [
        line for name, measure in MEASURES.items() for line in _measured(name, measure, studies)
    ]


def _measured(
    name: str, measure: Callable[[Prediction], float], studies: Sequence[Study]
) -> list[dict[str, Any]]:
    def values(study: Study, half: Half, group: Group) -> FloatArray:
        return np.array([measure(p) for p in study.refused(half, group)])

    chosen_on = [
        (values(study, "development", "ambiguous"), values(study, "development", "unknown"))
        for study in studies
    ]
    sign = 1.0 if fmean(above(*pair) for pair in chosen_on) >= CHANCE else -1.0
    threshold = sign * best_threshold([(sign * a, sign * u) for a, u in chosen_on])
    lines = []
    for study in studies:
        for half in HALVES:
            of: dict[Group, FloatArray] = {
                group: values(study, half, group) for group in ("ambiguous", "unknown", "usual")
            }
            lines.append(
                {
                    "measure": name,
                    "task": study.task,
                    "half": half,
                    "auroc": above(of["ambiguous"], of["unknown"]),
                    "interval": interval(of["ambiguous"], of["unknown"]),
                    "threshold": threshold,
                    "ambiguous_side": "above" if sign > 0 else "below",
                    "n": {group: len(some) for group, some in of.items()},
                    "clarified": {
                        group: float(np.mean(sign * some >= sign * threshold))
                        for group, some in of.items()
                    },
                }
            )
    return lines


def above(ambiguous: FloatArray, unknown: FloatArray) -> float:
    """AUROC: the chance that the measure is larger for an ambiguous input than for an unknown."""
    scores = np.concatenate([ambiguous, unknown])
    return auroc(scores, np.arange(len(scores)) >= len(ambiguous))


def interval(ambiguous: FloatArray, unknown: FloatArray) -> tuple[float, float]:
    """95 % of `above` over the draw of both sets (bootstrap)."""
    wins = (ambiguous[:, None] > unknown) + 0.5 * (ambiguous[:, None] == unknown)  # [n, m]
    rng = np.random.default_rng(0)
    n, m = wins.shape
    times = rng.multinomial(n, np.full(n, 1 / n), _RESAMPLES)  # that each was drawn
    other = rng.multinomial(m, np.full(m, 1 / m), _RESAMPLES)
    areas = ((times @ wins) * other).sum(axis=1) / (n * m)
    low, high = np.quantile(areas, (0.025, 0.975))
    return float(low), float(high)


def best_threshold(pairs: Sequence[tuple[FloatArray, FloatArray]]) -> float:
    """The value at or above which lie most of the ambiguous and fewest of the unknown.

    Args:
        pairs: ambiguous and unknown of each adapter; each adapter weighs the same.
    """
    candidates = np.unique(np.concatenate([side for pair in pairs for side in pair]))
    gain = [fmean(np.mean(a >= t) - np.mean(u >= t) for a, u in pairs) for t in candidates]
    return float(candidates[int(np.argmax(gain))])


def decided(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """What each adapter's policy makes of every kind of input, in shares of the kind."""
    lines = []
    for study in studies:
        for half, group, kind in dict.fromkeys((d.half, d.group, d.kind) for d in study.doubts):
            verdicts = [
                study.policy.decide(d.prediction).decision
                for d in study.doubts
                if (d.half, d.group, d.kind) == (half, group, kind)
            ]
            shares = {str(name): verdicts.count(name) / len(verdicts) for name in Decision}
            lines.append(
                {"task": study.task, "half": half, "group": group, "kind": kind}
                | {"n": len(verdicts), **shares}
            )
    return lines
