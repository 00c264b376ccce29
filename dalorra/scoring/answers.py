"""One line for each row: the answer, or what is wrong with the row."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from dalorra.decision.policy import Policy
from dalorra.decision.predictive import Prediction
from dalorra.errors import InputError
from dalorra.prompts import InputFields, Prompt
from dalorra.scoring.questions import Question

Line = dict[str, Any]

ANSWER_COLUMNS = (
    "label",
    "probability",
    "variance",
    "decision",
    "reason",
    "probabilities",
    "entropy",
    "mutual_information",
    "novelty",
    "truncated",
    "error",
)


class Scorer(Protocol):
    """The part of `dalorra.predictor.Predictor` that scoring needs."""

    policy: Policy

    def encode(self, value: InputFields, /) -> Prompt:
        """Tokenises one input."""

    def packed_rows(self, prompt: Prompt, /) -> int:
        """Rows that this prompt adds to a forward."""

    def predict(self, prompts: Sequence[Prompt], /) -> list[Prediction]:
        """Answers one batch, order kept."""


def answer(predictor: Scorer, questions: Sequence[Question], batch_rows: int) -> list[Line]:
    """Answers a window in batches of similar length; the lines are in the order of `questions`.

    Args:
        predictor: an adapter on its base model.
        questions: one for each row.
        batch_rows: packed rows of one forward, padding included.

    Raises:
        FloatingPointError: the forward gave a probability that is not a number.
    """
    lines: dict[int, Line] = {}
    prompts: dict[int, Prompt] = {}
    for index, question in enumerate(questions):
        try:
            if question.fields is None:
                raise InputError(question.problem)
            prompts[index] = predictor.encode(question.fields)
        except InputError as error:
            lines[index] = _line(question.row, error=str(error))
    for batch in _batches(predictor, prompts, batch_rows):
        answered = predictor.predict([prompts[index] for index in batch])
        for index, prediction in zip(batch, answered, strict=True):
            truncated = prompts[index].truncated
            lines[index] = _answered(questions[index].row, prediction, predictor.policy, truncated)
    return [lines[index] for index in range(len(questions))]


def _batches(
    predictor: Scorer, prompts: dict[int, Prompt], batch_rows: int
) -> Iterator[Sequence[int]]:
    """Keys of `prompts`, longest first, as many at a time as fit."""
    order = sorted(prompts, key=lambda index: -prompts[index].tokens)
    start = 0
    while start < len(order):
        rows = predictor.packed_rows(prompts[order[start]])
        end = start + max(batch_rows // rows, 1)
        yield order[start:end]
        start = end


def _answered(row: int, prediction: Prediction, policy: Policy, truncated: bool) -> Line:
    if not math.isfinite(prediction.probability + prediction.variance):
        raise FloatingPointError(f"row {row}: the forward gave a probability that is not a number")
    verdict = policy.decide(prediction.probability, prediction.variance, prediction.novelty)
    return _line(
        row,
        label=prediction.label,
        probability=prediction.probability,
        variance=prediction.variance,
        decision=str(verdict.decision),
        reason=verdict.reason,
        probabilities=prediction.probabilities,
        entropy=prediction.entropy,
        mutual_information=prediction.mutual_information,
        novelty=prediction.novelty,
        truncated=truncated,
    )


def _line(row: int, **known: object) -> Line:
    return {"row": row, **{name: known.get(name) for name in ANSWER_COLUMNS}}
