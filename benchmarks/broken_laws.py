"""Laws that answers must keep together, and how doubtful the answers are that break them.

A law may be hard for every answer, whatever its doubt. So tests are compared with others of the
same law: they are in the low, middle or high third of that law's tests by doubt.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from dalorra.decision.intervals import percentile_interval
from dalorra.decision.metrics import FloatArray

Answers = Mapping[str, Mapping[str, Any]]
"""By the names of the questions, as they are on the wire."""

Ask = Callable[[Any, Mapping[str, Any]], Answers]
"""Of a state and questions."""

_RESAMPLES: Final = 1000
_THIRDS: Final = 3


@dataclass(frozen=True, slots=True)
class Tried:
    """One law, tried on the questions of one state.

    Attributes:
        law: its name.
        case: name of the state.
        broken: whether the answers break it.
        accepted: whether all of the answers that it is about are accepted.
        variance: the greatest of theirs.
        unsure: the greatest 1 − p of theirs, p of the most probable option.
    """

    law: str
    case: str
    broken: bool
    accepted: bool
    variance: float
    unsure: float


DOUBTS: Final[Mapping[str, Callable[[Tried], float]]] = MappingProxyType(
    {"variance": lambda test: test.variance, "1 − p": lambda test: test.unsure}
)


class Noted(Mapping[str, Any]):
    """A mapping that tells which of its values were looked at."""

    def __init__(self, values: Mapping[str, Any], looked_at: Callable[[str], object]) -> None:
        self._values = values
        self._looked_at = looked_at

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        self._looked_at(key)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def judged(suite: Any, ask: Ask, cases: set[str]) -> list[Tried]:
    """Every test of a JevBench suite on these cases, by the answers that its law looks at.

    Args:
        suite: with a frozen plan.
        ask: answers what the suite asked before.
        cases: their names.
    """
    registry = import_module("jevbench.relations").REGISTRY
    return [
        _tried(law, case, [suite.plan.trial(row, case) for row in rows], ask)
        for case in suite.cases
        if case.id in cases
        for law in registry.values()
        if (rows := suite.plan.rows(case.id, law.name))
    ]


def _tried(law: Any, case: Any, trials: Sequence[Any], ask: Ask) -> Tried:
    """One law on one case; its trials are variants of one test, which breaks if any does."""
    context_of = import_module("jevbench.relations").Context
    read_all = import_module("jevbench.engine").read_all
    looked_at: list[Mapping[str, Any]] = []

    def noted(questions: Mapping[str, Any]) -> Noted:
        answers = ask(case.state, questions)
        return Noted(read_all(answers, questions), lambda name: looked_at.append(answers[name]))

    context = context_of(base=noted(case.questions), noise=dict.fromkeys(case.questions, 0.0))
    outcomes = [
        outcome
        for trial in trials
        for outcome in law.evaluate(
            trial, {label: noted(asked) for label, asked in trial.requests.items()}, context
        )
    ]
    return Tried(
        law.name,
        case.id,
        broken=any(outcome.violated for outcome in outcomes),
        accepted=all(one["x_decision"] == "accept" for one in looked_at),
        variance=max(one["x_variance"] for one in looked_at),
        unsure=max(1.0 - _most_probable(one) for one in looked_at),
    )


def _most_probable(answer: Mapping[str, Any]) -> float:
    if answer["type"] == "noul":
        return max(answer["noul"], 1.0 - answer["noul"])
    return max(answer["probabilities"].values())


def among(tests: Sequence[Tried]) -> dict[str, Any]:
    """The share of broken laws; its interval is over redraws of the cases.

    Returns:
        `n`, and `share` and `interval`, None of none.
    """
    if not tests:
        return {"n": 0, "share": None, "interval": None}
    broken = np.array([test.broken for test in tests], dtype=float)
    weights = _redraws(tests)
    shares = weights @ broken / np.maximum(weights.sum(axis=1), 1.0)
    return {
        "n": len(tests),
        "share": float(broken.mean()),
        "interval": percentile_interval(shares),
    }


def by_thirds(tests: Sequence[Tried], doubt: str) -> dict[str, Any]:
    """Shares of broken laws by doubt.

    Args:
        tests: of any laws.
        doubt: a key of `DOUBTS`.

    Returns:
        `thirds`, from the least doubtful on, see `among`; `auroc`, the share of pairs of tests of
        the same law, one broken and one not, in which the broken one is more doubtful, ties half;
        and its `interval` over redraws of the cases. Both None where there is no such pair.
    """
    thirds: list[list[Tried]] = [[] for _ in range(_THIRDS)]
    by_law: dict[str, list[int]] = defaultdict(list)
    for place, test in enumerate(tests):
        by_law[test.law].append(place)
    measure, weights = DOUBTS[doubt], _redraws(tests)
    above, pairs = np.zeros(_RESAMPLES + 1), np.zeros(_RESAMPLES + 1)
    for places in by_law.values():
        places.sort(key=lambda place: measure(tests[place]))
        for rank, place in enumerate(places):
            thirds[rank * _THIRDS // len(places)].append(tests[place])
        broken = [place for place in places if tests[place].broken]
        kept = [place for place in places if not tests[place].broken]
        one, other = (
            np.array([measure(tests[place]) for place in part]) for part in (broken, kept)
        )
        wins = (one[:, None] > other) + 0.5 * (one[:, None] == other)  # [broken, kept]
        of_broken, of_kept = _with_all(weights[:, broken]), _with_all(weights[:, kept])
        above += ((of_broken @ wins) * of_kept).sum(axis=1)
        pairs += of_broken.sum(axis=1) * of_kept.sum(axis=1)
    aurocs = above[pairs > 0] / pairs[pairs > 0]
    return {
        "thirds": [among(part) for part in thirds],
        "auroc": float(aurocs[0]) if pairs[0] else None,
        "interval": percentile_interval(aurocs[1:]) if pairs[0] else None,
    }


def _with_all(weights: FloatArray) -> FloatArray:
    """The redraws, after one that has everything once."""
    return np.vstack([np.ones(weights.shape[1]), weights])


def _redraws(tests: Sequence[Tried]) -> FloatArray:
    """How often each test is in each redraw of the cases, `[resamples, tests]`."""
    cases = {name: place for place, name in enumerate(dict.fromkeys(one.case for one in tests))}
    drawn = np.random.default_rng(0).multinomial(
        len(cases), np.full(len(cases), 1.0 / len(cases)), size=_RESAMPLES
    )
    return drawn[:, [cases[test.case] for test in tests]].astype(float)
