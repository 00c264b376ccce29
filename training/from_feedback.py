"""A policy from a server's answers and the feedback on them: no data set, no base model."""

import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

from dalorra.adapter.directory import Adapter
from dalorra.decision.policy import Answer, Policy
from training.calibrate import PILOT_FRACTION, SPLIT_SEED, AnsweredExamples, calibrated
from training.promise import Promise
from training.tasks import Example, split_off


class JudgedAnswer(Answer, Protocol):
    """An answer whose true label is known. Answers to one input have one `name`, if it was kept."""

    @property
    def name(self) -> str: ...
    @property
    def true_label(self) -> str: ...


def calibrate_from_feedback(
    adapter: Adapter,
    answers: Sequence[JudgedAnswer],
    promise: Promise,
    *,
    min_novelty_p: float | None = None,
    pilot_fraction: float = PILOT_FRACTION,
) -> Policy:
    """Chooses the thresholds that accept the most and keep a promise; see `calibrate`.

    The promise is over the draw of the answers that were judged. It holds for all answers only
    where which of them are judged does not depend on whether they are right: a sample drawn at
    random, or all. Where only accepted answers are judged, nothing looser than the policy that
    accepted them can be shown to keep the promise, and so is not chosen.

    Args:
        adapter: the one that answered, under the temperature of its present policy.
        answers: those that were judged, each of the whole bank.
        promise: what must hold.
        min_novelty_p: see `calibrate`.
        pilot_fraction: share of the answers that declares the thresholds.

    Raises:
        ConfigError: see `calibrate`.
    """
    labels = tuple(adapter.manifest.prompt.labels)
    promise.check_labels(labels)
    named = [Example({"name": answer.name}, answer.true_label) for answer in answers]
    answer_of = {id(example): answer for example, answer in zip(named, answers, strict=True)}
    tested, pilot = (
        AnsweredExamples([answer_of[id(example)] for example in part], part)
        for part in split_off(named, float(pilot_fraction), SPLIT_SEED)
    )
    novelty, old = adapter.novelty, adapter.policy or Policy.never()
    frame = Policy.never(adapter.digest, "feedback").model_copy(
        update={
            "temperature": old.temperature,
            "min_novelty_p": min_novelty_p or None,
            "novelty_digest": novelty.digest if novelty and min_novelty_p else None,
            "bank": adapter.manifest.bank.model_dump(),
            "data_digest": _digest(answers),
        }
    )
    return calibrated(frame, pilot, tested, promise, labels)


def _digest(answers: Sequence[JudgedAnswer]) -> str:
    """sha256 over names, scores and labels, in order."""
    judged = [
        [a.name, a.label, a.probability, a.variance, a.novelty, a.cut_at, a.true_label]
        for a in answers
    ]
    return hashlib.sha256(json.dumps(judged).encode()).hexdigest()
