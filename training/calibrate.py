"""Thresholds with a promise: P(error | accepted) stays within a target, with a stated confidence.

`training.risk_control` has the mathematics; here are the data, the costs and the policy.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from dalorra.decision.policy import NEVER, Answer, CalibratedPoint, Decision, Policy
from dalorra.errors import ConfigError
from training.answers import Evaluable, answer, labels_of_all
from training.evaluate import check_labels
from training.promise import Promise, cost_matrix, scored_examples
from training.risk_control import (
    LevelRange,
    ScoredExamples,
    declare_strictness,
    kept_levels,
    upper_limit,
)
from training.tasks import Example, data_digest, split_off
from training.temperature import TemperatureChoice, temperature_on

PILOT_FRACTION = 0.1
"""Share of the examples that declares the levels. Few show what they need; the tests need many."""

STRICTER = (0.75, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
"""Stricter targets to calibrate too, as fractions of the one that is asked for."""

SPLIT_SEED = 0  # fixed: drawing again until something qualifies would void the promise


@dataclass(frozen=True, slots=True)
class AnsweredExamples:
    """Labelled examples and the predictions for them, in one order."""

    predictions: Sequence[Answer]
    examples: Sequence[Example]


def calibrate(
    predictor: Evaluable,
    examples: Sequence[Example],
    promise: Promise,
    *,
    source: str,
    bank: Mapping[str, int | str] | None = None,
    temperature: TemperatureChoice = "auto",
    min_novelty_p: float | None = None,
    novelty_digest: str | None = None,
    others: Iterable[Evaluable] = (),
    out_of_scope: Collection[str] = (),
    quiet: bool = True,
) -> Policy:
    """Chooses the thresholds that accept the most and keep a promise, by Learn then Test.

    A fixed share of the examples, by a hash of their inputs, fits the temperature and declares the
    order in which pairs are tested; the others test them. Equal inputs are draws like any others,
    and may come on both sides. The promise is over the draw of these examples, for inputs that
    come from where they came from, and for the precisions of the predictors. The examples must not
    have been used to train or to select the adapter.

    Examples that are cut to fit are never accepted, nor, with a novelty level, which is declared
    and not chosen, the novel ones: they are left out of the pilot and of the tests, and count among
    those not accepted. What is tested is then the error among the accepted that remain, as the
    policy serves it.

    Args:
        predictor: an adapter on its base model; it carries the new policy afterwards.
        examples: labelled inputs.
        promise: what must hold.
        source: what the examples are, for the policy.
        bank: how the predictor's samples were drawn, likewise.
        temperature: whether to divide all label logits by the temperature that makes the pilot's
            labels most likely: where that helps, always or never. It changes the probabilities
            that are served, and so comes before the thresholds.
        min_novelty_p: ε of the policy; None or 0 for none. An adapter without novelty features
            has nothing to compare with it.
        novelty_digest: of those features, for the policy.
        others: the same adapter in other precisions, in which the promise must hold as well; each
            is asked for when the one before is done with.
        out_of_scope: labels of examples that no label of the adapter answers: to accept one is an
            error. They fit no temperature.
        quiet: whether to leave out the progress bar.

    Returns:
        The policy, with thresholds for stricter targets; one that never accepts when no pair of
        thresholds keeps the promise.

    Raises:
        ConfigError: no examples or too few, an unknown label, or a novelty level for an
            adapter without novelty features.
        InputError: an input does not fit the adapter's template.
    """
    check_labels(predictor, examples, out_of_scope)
    labels = labels_of_all(predictor, examples)
    promise.check_labels(labels)
    tested, pilot = split_off(examples, PILOT_FRACTION, SPLIT_SEED, repeats_together=False)
    predictor.policy = Policy.never(predictor.card.digest)
    answered = [example for example in pilot if example.label not in out_of_scope]
    fitted = temperature_on(predictor, answered, temperature)
    predictor.policy = predictor.policy.model_copy(update={"temperature": fitted})
    frame = predictor.policy.model_copy(
        update={
            "min_novelty_p": min_novelty_p or None,
            "novelty_digest": novelty_digest if min_novelty_p else None,
            "bank": None if bank is None else dict(bank),
            "data_digest": data_digest(examples),
            "source": source,
        }
    )
    declaring, deciding = (
        AnsweredExamples(answer(predictor, part, mean_mask=False, quiet=quiet).sampled, part)
        for part in (pilot, tested)
    )
    elsewhere, precisions = [], [predictor.precision]
    for other in others:
        other.policy = predictor.policy
        answers = answer(other, tested, mean_mask=False, quiet=quiet).sampled
        elsewhere.append(AnsweredExamples(answers, tested))
        precisions.append(other.precision)
    frame = frame.model_copy(update={"precisions": tuple(dict.fromkeys(precisions))})
    predictor.policy = calibrated(frame, declaring, deciding, promise, labels, elsewhere=elsewhere)
    return predictor.policy


def unpromised(policy: Policy) -> Policy:
    """The same thresholds where nothing is known of the inputs to come that a promise needs."""
    return policy.model_copy(update={"confidence": None, "upper_bound": None, "path": ()})


def calibrated(
    frame: Policy,
    pilot: AnsweredExamples,
    tested: AnsweredExamples,
    promise: Promise,
    labels: Sequence[str] | None,
    *,
    elsewhere: Sequence[AnsweredExamples] = (),
) -> Policy:
    """The policy that accepts the most of the answers and keeps the promise.

    Args:
        frame: how the answers were made and where they are from; its thresholds are replaced.
        pilot: declares which thresholds are tested.
        tested: tests it.
        promise: what must hold.
        labels: of the adapter; None: they come with the inputs.
        elsewhere: the answers to what is tested in other precisions.

    Raises:
        ConfigError: the frame has a novelty level, and the answers no novelty.
    """
    points = points_of(frame, pilot, tested, promise, labels, elsewhere=elsewhere)
    source = (
        f"{frame.source}: {len(pilot.examples)} examples to declare the thresholds, "
        f"{len(tested.examples)} to test"
    )
    return promising(
        frame.model_copy(update={"source": source}), points, tested.predictions, promise
    )


def promising(
    frame: Policy,
    points: Sequence[CalibratedPoint],
    predictions: Sequence[Answer],
    promise: Promise,
) -> Policy:
    """The policy with these thresholds.

    Args:
        frame: how the answers were made and where they are from; its thresholds are replaced.
        points: for the promise, then for stricter targets; none: it accepts nothing.
        predictions: what the thresholds were tested on.
        promise: what they keep.
    """
    main = points[0] if points else None
    policy = frame.model_copy(
        update={
            "min_probability": main.min_probability if main else NEVER,
            "max_variance": main.max_variance if main else 0.0,
            "target_error": promise.target_error,
            "confidence": promise.confidence,
            "n": len(predictions),
            "accepted": main.accepted if main else 0.0,
            "error": main.error if main else None,
            "upper_bound": main.upper_bound if main else None,
            "class_targets": dict(promise.class_targets),
            "costs": dict(promise.costs),
            "path": tuple(points[1:]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )
    return policy.model_copy(update={"escalated": _escalated(policy, predictions)})


def _escalated(policy: Policy, predictions: Sequence[Answer]) -> float:
    """Share of the predictions that the policy escalates."""
    verdicts = [policy.decide(p) for p in predictions]
    return sum(verdict.decision is Decision.ESCALATE for verdict in verdicts) / len(verdicts)


def points_of(
    policy: Policy,
    pilot: AnsweredExamples,
    tested: AnsweredExamples,
    promise: Promise,
    labels: Sequence[str] | None,
    *,
    elsewhere: Sequence[AnsweredExamples] = (),
) -> list[CalibratedPoint]:
    """Thresholds for the promise and for the stricter targets that are reached too, strictest last.

    Empty when the promise itself cannot be kept. What `policy` excludes is left out of the pilot
    and of the tests, and counts among those not accepted.

    In each precision all levels between its first step and its last rejected one keep the target
    together (`training.risk_control`), so the strictest of the precisions' levels keeps it in each,
    if it is as loose as the first step of every one; the confidence is for each by itself.

    Raises:
        ConfigError: the policy has a novelty level, and the predictions no novelty.
    """
    declaring, deciding, *others = (
        familiar(policy, part, promise, labels) for part in (pilot, tested, *elsewhere)
    )
    if declaring is None or deciding is None or any(other is None for other in others):
        return []
    # What a loss of 1 costs.
    scale = 1.0 if labels is None else float(cost_matrix(labels, promise.costs).max())
    targets = targets_of(promise)
    strictness = declare_strictness(declaring)
    in_losses = [target / scale for target in targets]
    everywhere = [deciding, *(other for other in others if other is not None)]
    found = [
        kept_levels(strictness, declaring, part, in_losses, promise.confidence)
        for part in everywhere
    ]
    of_examples = strictness.levels(deciding.probability, deciding.variance)
    risk = deciding.risks[0]

    def point(levels: Sequence[LevelRange | None], target: float) -> CalibratedPoint | None:
        reached = [level for level in levels if level is not None]
        strictest = max((level.loosest for level in reached), default=1.0)
        if len(reached) < len(levels) or any(strictest > level.first for level in reached):
            return None
        accepted = risk.counted & (of_examples >= strictest)
        count, loss = int(accepted.sum()), float(risk.loss[accepted].sum())
        limit = upper_limit(loss, count, promise.confidence, binary=risk.binary)
        tau_p, tau_v = strictness.thresholds(strictest)
        return CalibratedPoint(
            target_error=target,
            min_probability=tau_p,
            max_variance=tau_v,
            accepted=count / len(tested.examples),
            error=scale * loss / count,
            upper_bound=min(scale * limit, target),  # rounding must not make it exceed the target
        )

    points = [point(levels, target) for *levels, target in zip(*found, targets, strict=True)]
    return [one for one in points if one is not None]


def targets_of(promise: Promise) -> list[float]:
    """The promised target error, and the stricter ones that are calibrated with it."""
    stricter = [float(f"{promise.target_error * part:.6g}") for part in STRICTER]
    return [promise.target_error, *stricter]


def familiar(
    policy: Policy, part: AnsweredExamples, promise: Promise, labels: Sequence[str] | None
) -> ScoredExamples | None:
    """The examples that `policy` does not exclude; None where there are none."""
    if policy.min_novelty_p and any(p.novelty is None for p in part.predictions):
        raise ConfigError(
            "a novelty level needs novelty features, which the adapter does not have: fit them "
            "with `dalorra novelty`, or leave the level out"
        )
    kept = [
        (p, e.label)
        for p, e in zip(part.predictions, part.examples, strict=True)
        if not policy.excludes(p)
    ]
    if not kept:
        return None
    predictions, truth = zip(*kept, strict=True)
    return scored_examples(predictions, truth, labels, promise)
