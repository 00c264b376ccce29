"""Scores an adapter on labelled examples: every one of them, in float64.

The M samples are scored as they are served; the mean mask, one deterministic pass with the
posterior mean in place of a sample, is scored beside them.
"""

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from rich.console import Console

from dalorra.adapter.manifest import library_versions
from dalorra.decision import metrics
from dalorra.decision.intervals import binomial_interval
from dalorra.decision.policy import Decision, Policy
from dalorra.decision.predictive import Prediction
from dalorra.errors import ConfigError
from training.answers import Answers, Evaluable, answer, labels_of
from training.environment import hardware
from training.figures import (
    acceptance_figure,
    decisions_figure,
    reliability_figure,
    risk_coverage_figure,
)
from training.report import metrics_table
from training.tasks import Example

METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.jsonl"
RELIABILITY_FILE = "reliability.png"
RISK_COVERAGE_FILE = "risk_coverage.png"
ACCEPTANCE_FILE = "acceptance.png"
DECISIONS_FILE = "decisions.png"

ERROR_LEVELS = (0.01, 0.02, 0.05, 0.10)
"""Error rates for which the acceptable share is reported."""

DECILES = 10


def evaluate(
    predictor: Evaluable,
    examples: Sequence[Example],
    out_dir: Path | None = None,
    *,
    task: str | None = None,
    seeds: Mapping[str, int] | None = None,
    used: Iterable[Example] = (),
    outside: Sequence[Example] = (),
    more: Callable[[Answers], Mapping[str, Any]] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Predicts and scores every example.

    Args:
        predictor: an adapter on its base model.
        examples: labelled inputs; none is dropped.
        out_dir: where to write `metrics.json`, `predictions.jsonl` and four figures:
            `reliability.png`, `risk_coverage.png`, `acceptance.png`, `decisions.png`; None writes
            nothing.
        task: name of the data, for `metrics.json`.
        seeds: seeds that the adapter depends on, likewise.
        used: what the adapter was trained, selected and calibrated on, as far as it is known; how
            many examples have the input of one of these is counted as `used`.
        outside: inputs that no label answers; how many of them are accepted is no part of the
            other scores.
        more: gives further results from the answers.
        quiet: whether to leave out the progress bar and the table.

    Returns:
        The content of `metrics.json`. The scores of the M samples are at the top level, those of
        the mean mask under `mean_mask`; None is a score that does not exist, such as the AUROC of
        a set without errors.

    Raises:
        ConfigError: there are no examples, or one has a label that the adapter cannot answer.
        InputError: an input does not fit the adapter's template.
    """
    check_labels(predictor, examples)
    answers = answer(predictor, examples, quiet=quiet)
    truth, card = [example.label for example in examples], predictor.card
    result: dict[str, Any] = {
        "task": task,
        "n": len(examples),
        "truncated": sum(answers.truncated),
        "used": _among(examples, used),
        **score(answers.sampled, truth),
        "mean_mask": score(answers.mean_mask, truth, sampled=False),
        "decisions": _by_decision(predictor.policy, answers.sampled, truth),
        **({"out_of_scope": _out_of_scope(predictor, answers.sampled, outside)} if outside else {}),
        **(more(answers) if more else {}),
        "policy": predictor.policy.model_dump(mode="json"),
        "model": card.model,
        "adapter": card.adapter,
        "adapter_digest": card.digest,
        "method": card.method,
        "scope": predictor.scope,
        "samples": predictor.samples,
        "seeds": dict(seeds or {}),
        "seconds": answers.seconds,
        "versions": library_versions(),
        "hardware": hardware(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    result = without_nan(result)
    if out_dir is not None:
        _write(out_dir, result, answers, examples, predictor.policy)
    if not quiet:
        Console().print(metrics_table(result))
    return result


def score(
    predictions: Sequence[Prediction], truth: Sequence[str], *, sampled: bool = True
) -> dict[str, Any]:
    """Scores predictions against label names.

    Args:
        predictions: one or more.
        truth: name of the true label of each.
        sampled: whether the predictions have a variance; adds the scores of it.

    Returns:
        Always: accuracy, ece, ece_by_chance, nll (nats), brier, aurc and auroc of the confidence,
        `acceptance` (largest share with at most that error, by confidence), `reliability` (bins).
        With `sampled` also: auroc, aurc and acceptance of the variance, Spearman's ρ of variance
        and error over examples and over variance deciles, `error_by_variance` (those deciles).
    """
    probabilities = np.zeros((len(predictions), max(len(p.probabilities) for p in predictions)))
    for row, prediction in zip(probabilities, predictions, strict=True):
        row[: len(prediction.probabilities)] = list(prediction.probabilities.values())
    targets = np.array(
        [list(p.probabilities).index(name) for p, name in zip(predictions, truth, strict=True)]
    )
    confidence = np.clip([p.probability for p in predictions], 0.0, 1.0)
    correct = np.array([p.label == name for p, name in zip(predictions, truth, strict=True)])
    bins = metrics.reliability_bins(confidence, correct)
    result: dict[str, Any] = {
        "accuracy": float(correct.mean()),
        "ece": metrics.expected_calibration_error(confidence, correct),
        "ece_by_chance": metrics.calibration_error_by_chance(
            (b.count, b.confidence) for b in bins if b.count
        ),
        "nll": metrics.negative_log_likelihood(probabilities, targets),
        "brier": metrics.brier_score(probabilities, targets),
        "auroc_confidence": metrics.auroc(-confidence, correct),
        "aurc_confidence": metrics.aurc(-confidence, correct),
        "acceptance": _acceptance(-confidence, correct),
        "reliability": [asdict(b) for b in bins],
    }
    if sampled:
        variance = np.array([p.variance for p in predictions])
        groups = metrics.error_by_quantile(
            variance, correct, quantiles=min(DECILES, len(predictions))
        )
        result |= {
            "auroc_variance": metrics.auroc(variance, correct),
            "aurc_variance": metrics.aurc(variance, correct),
            "acceptance_variance": _acceptance(variance, correct),
            "spearman_variance": metrics.spearman(variance, ~correct),
            "spearman_variance_deciles": metrics.spearman(
                range(len(groups)), [group.error for group in groups]
            ),
            "error_by_variance": [asdict(group) for group in groups],
        }
    return result


def _acceptance(uncertainty: ArrayLike, correct: ArrayLike) -> dict[str, float]:
    """Error level → largest share with at most that error, by a threshold on `uncertainty`."""
    return {
        str(level): metrics.acceptance_at_error(uncertainty, correct, level)
        for level in ERROR_LEVELS
    }


def _among(examples: Sequence[Example], used: Iterable[Example]) -> int:
    """How many of the examples have the input of one of `used`."""

    def key(example: Example) -> str:
        return json.dumps(example.content, sort_keys=True)

    known = {key(example) for example in used}
    return sum(key(example) in known for example in examples)


def check_labels(
    predictor: Evaluable, examples: Sequence[Example], out_of_scope: Collection[str] = ()
) -> None:
    """Refuses, with `ConfigError`, no examples, and one whose label the adapter cannot answer.

    Args:
        predictor: the adapter.
        examples: labelled inputs.
        out_of_scope: what the label of an input that none answers may be.
    """
    if not examples:
        raise ConfigError("there are no examples: give at least one")
    for number, example in enumerate(examples, start=1):
        labels = labels_of(predictor, example)
        if example.label not in labels and example.label not in out_of_scope:
            raise ConfigError(
                f"example {number} has the label {example.label!r}, which the adapter cannot "
                f"answer: it knows {', '.join(labels)}"
            )


def _by_decision(
    policy: Policy, predictions: Sequence[Prediction], truth: Sequence[str]
) -> dict[str, Any]:
    """How many answers each decision gets, and how many of those are right.

    `interval` is Clopper and Pearson's 95 % interval of the accuracy.
    """
    wrong: dict[Decision, list[bool]] = {decision: [] for decision in Decision}
    for prediction, name in zip(predictions, truth, strict=True):
        wrong[policy.decide(prediction).decision].append(prediction.label != name)
    return {
        decision.value: {
            "n": len(flags),
            "share": len(flags) / len(truth),
            "error": sum(flags) / len(flags) if flags else None,
            "accuracy": 1 - sum(flags) / len(flags) if flags else None,
            "interval": list(binomial_interval(len(flags) - sum(flags), len(flags))),
        }
        for decision, flags in wrong.items()
    }


def _out_of_scope(
    predictor: Evaluable, inside: Sequence[Prediction], examples: Sequence[Example]
) -> dict[str, Any]:
    """What becomes of inputs that no label answers, and how well doubt tells them from the others.

    `interval` is Clopper and Pearson's 95 % interval of the share that is accepted.
    """
    outside = answer(predictor, examples, mean_mask=False).sampled
    verdicts = [predictor.policy.decide(prediction).decision for prediction in outside]
    accepted = verdicts.count(Decision.ACCEPT)
    known = np.arange(len(inside) + len(outside)) < len(inside)
    both = [*inside, *outside]
    return {
        "n": len(outside),
        "accepted": accepted / len(outside),
        "interval": list(binomial_interval(accepted, len(outside))),
        "auroc_confidence": metrics.auroc([-p.probability for p in both], known),
        "auroc_variance": metrics.auroc([p.variance for p in both], known),
    }


def _write(
    out_dir: Path,
    result: Mapping[str, Any],
    answers: Answers,
    examples: Sequence[Example],
    policy: Policy,
) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2, allow_nan=False, ensure_ascii=False)
    (out_dir / METRICS_FILE).write_text(text + "\n", encoding="utf-8")
    with (out_dir / PREDICTIONS_FILE).open("w", encoding="utf-8") as file:
        for line in _prediction_lines(answers, examples, policy):
            file.write(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n")
    reliability_figure(
        {"M samples": result["reliability"], "mean mask": result["mean_mask"]["reliability"]},
        out_dir / RELIABILITY_FILE,
    )
    correct = [p.label == e.label for p, e in zip(answers.sampled, examples, strict=True)]
    by_confidence = [-p.probability for p in answers.sampled]
    by_variance = [p.variance for p in answers.sampled]
    risk_coverage_figure(
        {
            "by probability": metrics.risk_coverage_curve(by_confidence, correct),
            "by variance": metrics.risk_coverage_curve(by_variance, correct),
        },
        out_dir / RISK_COVERAGE_FILE,
        chosen=result["decisions"][Decision.ACCEPT.value],
    )
    acceptance_figure(
        {
            "by probability": result["acceptance"],
            "by variance": result["acceptance_variance"],
            "by probability, mean mask": result["mean_mask"]["acceptance"],
        },
        out_dir / ACCEPTANCE_FILE,
    )
    decisions_figure(result["decisions"], out_dir / DECISIONS_FILE)


def _prediction_lines(
    answers: Answers, examples: Sequence[Example], policy: Policy
) -> list[dict[str, Any]]:
    return [
        {
            "input": example.content,
            "true_label": example.label,
            "correct": sampled.label == example.label,
            **asdict(sampled),
            "decision": policy.decide(sampled).decision.value,
            "truncated": truncated,
            "mean_mask": {"label": mean.label, "probabilities": mean.probabilities},
        }
        for example, sampled, mean, truncated in zip(
            examples, answers.sampled, answers.mean_mask, answers.truncated, strict=True
        )
    ]


def without_nan(value: Any) -> Any:
    """The same value with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
