"""What accepted answers must keep: an error rate or a mean cost, and rates of single labels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dalorra.decision.policy import Answer, Policy
from dalorra.decision.promise_watch import false_accept_cost
from dalorra.errors import ConfigError
from training.risk_control import FloatArray, Risk, ScoredExamples


@dataclass(frozen=True, slots=True)
class Promise:
    """What the accepted answers must keep.

    Attributes:
        target_error: largest error rate among accepted answers, in (0, 1); with `costs` the
            largest mean cost of an accepted answer.
        confidence: probability over the draw of the labelled examples that it is kept.
        class_targets: label → largest error rate among accepted answers with that label. A label
            that is accepted too rarely to show its rate is a reason to accept nothing at all.
        costs: predicted label, or `true:predicted`, → cost of that false accept; others cost 1.
    """

    target_error: float
    confidence: float = 0.95
    class_targets: Mapping[str, float] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rates = {"target_error": self.target_error, "confidence": self.confidence}
        rates |= {f"class target {name!r}": rate for name, rate in self.class_targets.items()}
        for name, rate in rates.items():
            if not 0.0 < rate < 1.0:
                raise ConfigError(f"{name} {rate:g} is not between 0 and 1")
        for name, cost in self.costs.items():
            if not 0.0 <= cost < np.inf:
                raise ConfigError(f"cost {name!r} is {cost:g}, but must be finite and not negative")

    def check_labels(self, labels: Sequence[str] | None) -> None:
        """Raises `ConfigError` for a name that is no label, or where all false accepts are free.

        Where labels come with the inputs, None, there is no such name.
        """
        if labels is None:
            if self.class_targets or self.costs:
                raise ConfigError(
                    "class targets and costs are of the labels of all inputs, and these are "
                    "different questions: calibrate a single one"
                )
            return
        if unknown := sorted(self.class_targets.keys() - set(labels)):
            raise ConfigError(_no_label(unknown[0], labels))
        cost_matrix(labels, self.costs)


def cost_matrix(labels: Sequence[str], costs: Mapping[str, float]) -> FloatArray:
    """Cost of accepting a predicted label, `[K true, K predicted]`: 0 if right, else 1 or as given.

    Args:
        labels: K names.
        costs: predicted label → cost whatever the true one; `true:predicted` → cost of that pair,
            which wins.

    Raises:
        ConfigError: a name that is no label, or all false accepts are free.
    """
    pairs = {f"{true}:{predicted}" for true in labels for predicted in labels}
    if unknown := sorted(costs.keys() - pairs - set(labels)):
        raise ConfigError(_no_label(unknown[0], labels))
    matrix = np.array(
        [
            [false_accept_cost(costs, labels, true, predicted) for predicted in labels]
            for true in labels
        ]
    )
    if matrix.max() == 0.0:
        raise ConfigError("every false accept is free: give one of them a cost")
    return matrix


def scored_examples(
    answers: Sequence[Answer], truth: Sequence[str], labels: Sequence[str] | None, promise: Promise
) -> ScoredExamples:
    """Answers with their true labels in the form that the tests work on.

    A truth that is no label is out of scope: it costs what the worst false accept of the answer
    does.

    Args:
        answers: one or more.
        truth: name of the true label of each.
        labels: all names; None: they come with the inputs, and every error costs 1.
        promise: gives the targets and the costs; losses are in units of the largest cost.
    """
    if labels is None:
        wrong = np.array([a.label != name for a, name in zip(answers, truth, strict=True)])
        counted = np.ones(len(wrong), dtype=np.bool_)
        risk = Risk(wrong.astype(np.float64), counted, promise.target_error, binary=True)
        return _scored(answers, [risk])
    costs = cost_matrix(labels, promise.costs)
    costs = np.vstack([costs, costs.max(axis=0)])
    place = {name: row for row, name in enumerate(labels)}
    predicted = np.array([place[answer.label] for answer in answers])
    true = np.array([place.get(name, len(labels)) for name in truth])
    largest = float(costs.max())
    wrong = predicted != true
    risks = [
        Risk(
            costs[true, predicted] / largest,
            np.ones(len(true), dtype=np.bool_),
            promise.target_error / largest,
            # Known before the data: are there other losses than none and the largest?
            binary=set(np.unique(costs)) <= {0.0, largest},
        )
    ]
    for name, target in promise.class_targets.items():
        risks.append(Risk(wrong.astype(np.float64), predicted == labels.index(name), target))
    return _scored(answers, risks)


def _scored(answers: Sequence[Answer], risks: Sequence[Risk]) -> ScoredExamples:
    return ScoredExamples(
        np.array([answer.probability for answer in answers]),
        np.array([answer.variance for answer in answers]),
        tuple(risks),
    )


def uncalibrated(promise: Promise) -> str:
    """Why an adapter that was only trained accepts nothing, and what would change that.

    The hold-out of a run selects its checkpoint and is no judge of it any more.
    """
    return (
        "its thresholds are not calibrated: give `dalorra calibrate` labelled examples that it was "
        f"neither trained nor selected on, for an error of {promise.target_error:g} at least "
        f"{least_examples(promise.target_error, promise.confidence)} that are answered rightly, "
        "besides the tenth of them that only declares what is tested"
    )


def least_examples(target_error: float, confidence: float) -> int:
    """Accepted examples without a mistake that show an error rate to be within a target.

    The least n with (1 − target)ⁿ ≤ 1 − confidence, and one more, which the thresholds lie below
    (`training.risk_control`). Fewer show nothing, whatever the thresholds.
    """
    return math.ceil(math.log(1.0 - confidence) / math.log1p(-target_error)) + 1


def promise_in_words(policy: Policy) -> str:
    """What a calibrated policy promises, line by line."""
    sure = f"{100 * (policy.confidence or 0.0):.6g} % confidence"
    what = "mean cost of an accepted answer" if policy.costs else "error among accepted answers"
    if policy.never_accepts:
        least = (
            f" That takes {least_examples(policy.target_error, policy.confidence):,} accepted ones "
            f"without a mistake{_least_of_classes(policy)}, and more with any."
            if policy.target_error and policy.confidence and not policy.costs
            else ""
        )
        return (
            f"NOTHING IS ACCEPTED: {policy.n:,} test examples do not show of any thresholds that "
            f"they keep the {what} within {policy.target_error:g} with {sure}.{least} Use more "
            "examples, a looser target or a better adapter."
        )
    tau_p, tau_v = policy.min_probability, policy.max_variance
    seen = f"{policy.accepted:.1%} accepted, {policy.error:.4g} observed"
    lines = [
        f"{what} ≤ {policy.target_error:g} with {sure} over the draw of {policy.n:,} test examples",
        f"  accept: probability ≥ {tau_p:.6g} and variance ≤ {tau_v:.6g}",
        f"  on these: {seen}, upper bound {policy.upper_bound:.4g}",
    ]
    lines += [
        f"  within {target:g} where the answer is {name}"
        for name, target in policy.class_targets.items()
    ]
    if policy.temperature != 1.0:
        lines.append(f"  label logits are divided by {policy.temperature:.4g}")
    lines += [
        f"  stricter, ≤ {point.target_error:g}: {point.accepted:.1%} accepted"
        for point in policy.path
    ]
    return "\n".join(lines)


def _least_of_classes(policy: Policy) -> str:
    return "".join(
        f", {least_examples(target, policy.confidence or 0.0):,} where the answer is {name}"
        for name, target in policy.class_targets.items()
    )


def _no_label(name: str, labels: Sequence[str]) -> str:
    return f"{name!r} is not a label of the adapter: it knows {', '.join(labels)}"
