"""What is to be known of an adapter that answers questions, beside the scores of any adapter.

How good it is on each kind of question, those that it never saw in training among them; what
thresholds do that were chosen on other kinds; and how much the order of the options moves.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from dalorra.decision.policy import Decision, Policy
from dalorra.decision.predictive import Prediction
from dalorra.questions import Asked, Option
from training.answers import Answers, Evaluable, answer
from training.calibrate import (
    PILOT_FRACTION,
    SPLIT_SEED,
    AnsweredExamples,
    calibrate,
    calibrated,
    unpromised,
)
from training.evaluate import score
from training.promise import Promise
from training.question_data import LEAST_CALIBRATION
from training.tasks import Example, split_off, subsample

OPEN: Final = ""
"""The label of an example that nothing answers."""

REORDERED: Final = 300
"""Questions that are asked again with their options in another order, at most."""

_SCORES: Final = (
    "accuracy",
    "nll",
    "ece",
    "ece_by_chance",
    "brier",
    "auroc_confidence",
    "auroc_variance",
    "aurc_confidence",
    "aurc_variance",
)


@dataclass(frozen=True, slots=True)
class Kinds:
    """Scores by kind of question, for `training.evaluate.evaluate`.

    Attributes:
        predictor: with its thresholds.
        examples: what was answered.
        held_out: kinds that were not trained on.
        promise: what thresholds are chosen for.
    """

    predictor: Evaluable
    examples: Sequence[Example]
    held_out: Sequence[str]
    promise: Promise

    def __call__(self, answers: Answers) -> dict[str, Any]:
        """`kinds`, `across_kinds` and `order`."""
        of_kind: dict[str, list[tuple[Prediction, Example]]] = defaultdict(list)
        for found, example in zip(answers.sampled, self.examples, strict=True):
            of_kind[example.kind].append((found, example))
        return {
            "kinds": {kind: self._scores(kind, found) for kind, found in of_kind.items()},
            "across_kinds": self._across(of_kind),
            "order": order_sensitivity(self.predictor, self.examples),
        }

    def _scores(self, kind: str, found: Sequence[tuple[Prediction, Example]]) -> dict[str, Any]:
        scores = score([p for p, _ in found], [e.label for _, e in found])
        return {
            "n": len(found),
            "trained_on": kind not in self.held_out,
            **{name: scores[name] for name in _SCORES},
            **accepted(self.predictor.policy, found),
        }

    def _across(
        self, of_kind: Mapping[str, Sequence[tuple[Prediction, Example]]]
    ) -> dict[str, Any]:
        """Held-out kind → what thresholds do on it that were chosen on the other held-out kinds."""
        held_out = [kind for kind in self.held_out if kind in of_kind]
        found = {}
        for kind in held_out:
            others = [pair for other in held_out if other != kind for pair in of_kind[other]]
            if len(others) >= LEAST_CALIBRATION:
                policy = policy_on(self.predictor.policy, others, self.promise)
                found[kind] = accepted(policy, of_kind[kind])
        return found


def accepted(
    policy: Policy, found: Sequence[tuple[Prediction, Example]]
) -> dict[str, float | None]:
    """Share that a policy accepts, and share of errors among these."""
    wrong = [p.label != e.label for p, e in found if policy.decide(p).decision is Decision.ACCEPT]
    return {
        "accepted": len(wrong) / len(found),
        "error": sum(wrong) / len(wrong) if wrong else None,
    }


def policy_on(
    frame: Policy, found: Sequence[tuple[Prediction, Example]], promise: Promise
) -> Policy:
    """Thresholds chosen on answers, which are at the temperature of `frame`."""
    examples = [example for _, example in found]
    answer_to = {id(example): prediction for prediction, example in found}
    tested, pilot = (
        AnsweredExamples([answer_to[id(example)] for example in part], part)
        for part in split_off(examples, PILOT_FRACTION, SPLIT_SEED, repeats_together=False)
    )
    return calibrated(frame, pilot, tested, promise, None)


def calibrated_on_kinds(
    predictor: Evaluable, examples: Sequence[Example], promise: Promise, bank: Mapping[str, Any]
) -> Policy:
    """Thresholds and temperature for questions of any kind. They promise nothing.

    They are tested as if they promised to keep the target, but that would be about questions drawn
    from these few kinds, and what will be asked is of others.

    Args:
        predictor: carries the policy afterwards.
        examples: of kinds that were not trained on; the label of one that nothing answers is
            `OPEN`.
        promise: what the thresholds are chosen for.
        bank: of the predictor.
    """
    policy = calibrate(
        predictor,
        examples,
        promise,
        source=source_of_kinds(examples),
        bank=bank,
        out_of_scope=(OPEN,),
    )
    predictor.policy = unpromised(policy)
    return predictor.policy


def source_of_kinds(examples: Sequence[Example]) -> str:
    """What examples of `calibrated_on_kinds` are, in words."""
    kinds = ", ".join(dict.fromkeys(example.kind for example in examples))
    of_them = f"questions of kinds that were not trained on ({kinds})"
    return f"{of_them}; of other kinds they promise nothing"


def thresholds_in_words(policy: Policy) -> str:
    """What a policy without a promise accepts, and of what."""
    if policy.never_accepts:
        return (
            f"NOTHING IS ACCEPTED: no thresholds keep the error among accepted within "
            f"{policy.target_error or 0.0:g} on {policy.source}"
        )
    return (
        f"accept: probability ≥ {policy.min_probability:.6g} and variance ≤ "
        f"{policy.max_variance:.6g}\n"
        f"  {policy.accepted:.1%} accepted, {policy.error:.4g} of them wrong, on {policy.source}"
    )


def order_sensitivity(predictor: Evaluable, examples: Sequence[Example]) -> dict[str, Any]:
    """How much an answer depends on the order in which a question gives its options.

    Returns:
        `n` questions with three options or more; `mean_change` of an option's probability when the
        options are reversed, and when each moves one place; share of answers that `changed`.
    """
    asked = [
        example
        for example in examples
        if isinstance(example.input, Asked)
        and example.input.question.kind == "choice"
        and len(example.input.question.options) > 2
    ]
    if not asked:
        return {"n": 0, "mean_change": None, "changed": None}
    asked = subsample(asked, min(REORDERED, len(asked)), 0)
    given = answer(predictor, asked, mean_mask=False).sampled
    changes, changed = [], []
    for turned in (lambda options: options[::-1], lambda options: (*options[1:], options[0])):
        again = [reordered(example, turned(_options(example))) for example in asked]
        for one, other in zip(
            given, answer(predictor, again, mean_mask=False).sampled, strict=True
        ):
            gaps = [abs(p - other.probabilities[name]) for name, p in one.probabilities.items()]
            changes.append(float(np.mean(gaps)))
            changed.append(one.label != other.label)
    return {
        "n": len(asked),
        "mean_change": float(np.mean(changes)),
        "changed": float(np.mean(changed)),
    }


def _options(example: Example) -> tuple[Option, ...]:
    return example.input.question.options if isinstance(example.input, Asked) else ()


def reordered(example: Example, options: Sequence[Option]) -> Example:
    """The same question with its options in this order."""
    if not isinstance(example.input, Asked):
        return example
    question = replace(example.input.question, options=tuple(options))
    return replace(example, input=replace(example.input, question=question), target=None)
