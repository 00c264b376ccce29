"""Results of an experiment's runs, read from disk and summarised over seeds."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dalorra.decision.metrics import calibration_error_by_chance
from dalorra.errors import ConfigError
from training.experiments.predictions import read_kept_answers

Result = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Summary:
    """A score over seeds.

    Attributes:
        mean: None where no run has the score.
        deviation: sample standard deviation; None for one run.
    """

    mean: float | None
    deviation: float | None = None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Summary":
        """Of the values that exist."""
        found = [value for value in values if value is not None]
        if not found:
            return cls(None)
        return cls(fmean(found), stdev(found) if len(found) > 1 else None)


@dataclass(frozen=True, slots=True)
class Score:
    """A column of a table.

    Attributes:
        name: its heading.
        key: in a result's scores; `a.b` is b inside a, where a has no `a.b` of its own.
        percent: whether it is shown as a percentage.
        low: whether a lower value is better; None: neither is.
    """

    name: str
    key: str
    percent: bool = False
    low: bool | None = True

    def of(self, scores: Mapping[str, Any]) -> float | None:
        """The value, None where there is none."""
        value: Any = scores
        rest = self.key
        while rest and isinstance(value, Mapping):
            key, _, rest = (rest, "", "") if rest in value else rest.partition(".")
            value = value.get(key)
        return None if rest or value is None else float(value)

    def show(self, summary: Summary) -> str:
        """For people: mean ± standard deviation."""
        if summary.mean is None:
            return "–"
        factor, digits = (100.0, 1) if self.percent else (1.0, 3)
        text = f"{factor * summary.mean:.{digits}f}"
        if summary.deviation is not None:
            text += f" ± {factor * summary.deviation:.{digits}f}"
        return text


@dataclass(frozen=True, slots=True)
class Results:
    """All results of one experiment.

    Attributes:
        name: of the experiment.
        runs: in the order of the experiment: by task, then by variant, then by seed.
    """

    name: str
    runs: Sequence[Result]

    @property
    def tasks(self) -> list[str]:
        """Names of the task settings."""
        return list(dict.fromkeys(run["task"] for run in self.runs))

    def variants(self, task: str) -> dict[str, list[Result]]:
        """Variant → its runs on a task, one for each seed."""
        found: dict[str, list[Result]] = defaultdict(list)
        for run in self.runs:
            if run["task"] == task:
                found[run["variant"]].append(run)
        return dict(found)


def read_results(folder: Path, order: Iterable[str]) -> Results:
    """Reads `<folder>/**/result.json`, and as `kept` of each the answers beside it, or None.

    Args:
        folder: of one experiment.
        order: keys of its runs (see `RunSpec.key`), in the order that tables show.

    Raises:
        ConfigError: there is no result.
    """
    found = {path.parent.relative_to(folder).as_posix(): path for path in _files(folder)}
    keys = [key for key in order if key in found]
    runs = [
        {
            **_with_chance(json.loads(found[key].read_text(encoding="utf-8"))),
            "kept": read_kept_answers(found[key].parent),
        }
        for key in keys
    ]
    if not runs:
        raise ConfigError(f"{folder} holds no result: run `dalorra experiment {folder.name}`")
    return Results(folder.name, runs)


def _with_chance(scores: Any) -> Any:
    """The same with `ece_by_chance` beside every `reliability`, which early results lack."""
    if not isinstance(scores, dict):
        return scores
    scores = {name: _with_chance(value) for name, value in scores.items()}
    if (bins := scores.get("reliability")) and "ece_by_chance" not in scores:
        filled = [(b["count"], b["confidence"]) for b in bins if b["count"]]
        scores["ece_by_chance"] = calibration_error_by_chance(filled)
    return scores


def _files(folder: Path) -> Iterator[Path]:
    return folder.glob("**/result.json")


def is_deterministic(run: Result) -> bool:
    """Whether every answer to the test set had a variance of zero."""
    groups = run.get("test", {}).get("error_by_variance") or []
    return bool(groups) and all(group["upper"] == 0.0 for group in groups)


def relative_work(run: Result, size: Mapping[str, float]) -> float:
    """Rows of layers that one answer takes, over those of one plain pass.

    A pass of T tokens is T rows in each of the L layers. M samples share the rows below the first
    of the adapted layers and, under `answer_tokens`, the prompt; see `forward.reference_rows`.

    Args:
        run: what it adapts and its samples.
        size: `test.size` of any run on its task.
    """
    adapter, samples = run["config"]["adapter"], run["samples"]
    prompt, cue, layers = size["prompt"], size["cue"], size["layers"]
    above = min(adapter["last_layers"] or layers, layers)
    one = prompt + cue
    every = prompt + samples * cue if adapter["scope"] == "answer_tokens" else samples * one
    return float(((layers - above) * one + above * every) / (layers * one))


def ranked(scores: Sequence[float | None], *, low: bool | None) -> list[int | None]:
    """Place of each score among the distinct ones, 0 for the best; None where there is none."""
    if low is None:
        return [None] * len(scores)
    distinct = sorted({s for s in scores if s is not None}, reverse=not low)
    return [None if s is None else distinct.index(s) for s in scores]
