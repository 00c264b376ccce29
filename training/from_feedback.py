"""A policy from a server's answers and the feedback on them: no data set, no base model.

Whoever runs the server looks when he likes, and again when more answers were judged, so nothing may
depend on the moment. The first `PILOT` answers, in the order in which they were judged, declare the
path and the steps at which testing starts, and are not tested on; both stay as they are whatever
comes later. All others test every step by `training.anytime`: a step that breaks its target ever
has a p-value of u or less with probability u at most. The fallback procedure rejects a bad step at
levels that are the same at every moment and come to δ for all bad ones (`training.threshold_path`).
So with probability 1 − δ none of the policies that are ever chosen here breaks its target, neither
the first that accepts anything nor the one of any later moment.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

from dalorra.adapter.directory import Adapter
from dalorra.decision.policy import Answer, CalibratedPoint, Policy
from dalorra.errors import ConfigError
from training.anytime import path_p_values, upper_limit
from training.calibrate import AnsweredExamples, familiar, promising, targets_of
from training.promise import Promise, cost_matrix
from training.risk_control import ScoredExamples
from training.tasks import Example
from training.threshold_path import declare_path, fallback, steps_accepting

PILOT = 30
"""Answers that declare the path; on simulated adapters 15 to 50 did about equally well."""

START_SHARES = (1 / 3, 1 / 2)
"""Testing starts at the steps that accept these shares of the pilot; likewise."""


class JudgedAnswer(Answer, Protocol):
    """An answer whose true label is known."""

    @property
    def request_id(self) -> str: ...
    @property
    def true_label(self) -> str: ...
    @property
    def precision(self) -> str: ...


def calibrate_from_feedback(
    adapter: Adapter,
    answers: Sequence[JudgedAnswer],
    promise: Promise,
    *,
    min_novelty_p: float | None = None,
) -> Policy:
    """Chooses the thresholds that accept the most and keep a promise, at any moment.

    The promise is over the draw of the answers that were judged. It holds for all answers only
    where which of them are judged by then does not depend on whether they are right: a sample drawn
    at random, or all. Where only accepted answers are judged, nothing looser than what the first
    ones show is chosen. Every answer counts, also one to an input that was judged before: the
    promise is about answers, and an input that is asked often is answered often. But each has to be
    a draw of its own: answers to one request that is sent again and again prove nothing new.

    Args:
        adapter: the one that answered, under the temperature of its present policy.
        answers: all that were judged, each of the whole bank and in one precision, in the order of
            their judgements.
        promise: what must hold.
        min_novelty_p: see `calibrate`.

    Raises:
        ConfigError: see `calibrate`; or no answer is left to test on.
    """
    labels = tuple(adapter.manifest.labelled.labels)
    promise.check_labels(labels)
    if len(answers) <= PILOT:
        raise ConfigError(
            f"the first {PILOT} judged answers declare what the others test, and there are only "
            f"{len(answers)}: collect more feedback"
        )
    novelty, old = adapter.novelty, adapter.policy or Policy.never()
    tested = answers[PILOT:]
    source = (
        f"feedback: the first {PILOT} answers to declare the thresholds, the {len(tested)} after "
        "them to test, at any moment"
    )
    frame = Policy.never(adapter.digest, source).model_copy(
        update={
            "temperature": old.temperature,
            "min_novelty_p": min_novelty_p or None,
            "novelty_digest": novelty.digest if novelty and min_novelty_p else None,
            "bank": adapter.manifest.bank.identity,
            "data_digest": _digest(answers),
            "precisions": (answers[-1].precision,) if answers[-1].precision else (),
        }
    )
    declaring, deciding = (
        familiar(frame, _examples(part), promise, labels) for part in (answers[:PILOT], tested)
    )
    points = []
    if declaring is not None and deciding is not None:
        scale = float(cost_matrix(labels, promise.costs).max())
        points = _points(declaring, deciding, promise, scale, len(tested))
    return promising(frame, points, tested, promise)


def _examples(answers: Sequence[JudgedAnswer]) -> AnsweredExamples:
    return AnsweredExamples(
        answers, [Example({"request_id": a.request_id}, a.true_label) for a in answers]
    )


def _points(
    pilot: ScoredExamples, tested: ScoredExamples, promise: Promise, scale: float, n: int
) -> list[CalibratedPoint]:
    """Thresholds for the promise and for the stricter targets that are reached, strictest last.

    Args:
        pilot: the first answers.
        tested: the others.
        promise: what must hold.
        scale: what a loss of 1 costs.
        n: answers that were tested, novel ones included.
    """
    path = declare_path(pilot)
    starts = steps_accepting(path, pilot, START_SHARES)
    counts, losses = path.totals(tested, tested.risks[0])
    points: list[CalibratedPoint] = []
    step = len(path) - 1
    for target in targets_of(promise):
        p_values = path_p_values(path, tested.aiming_at(target / scale))
        rejected = fallback(p_values, starts, 1.0 - promise.confidence)
        if not (kept := rejected[rejected <= step]).size:
            break  # a stricter target never accepts more
        step = int(kept[-1])
        count, loss = int(counts[step]), float(losses[step])
        limit = upper_limit(loss, count, promise.confidence)
        min_probability, max_variance = path.thresholds(step)
        points.append(
            CalibratedPoint(
                target_error=target,
                min_probability=min_probability,
                max_variance=max_variance,
                accepted=count / n,
                error=scale * loss / count,
                upper_bound=min(scale * limit, target),
            )
        )
    return points


def _digest(answers: Sequence[JudgedAnswer]) -> str:
    """sha256 over ids, scores and labels, in order."""
    judged = [
        [a.request_id, a.label, a.probability, a.variance, a.novelty, a.cut_at, a.true_label]
        for a in answers
    ]
    return hashlib.sha256(json.dumps(judged).encode()).hexdigest()
