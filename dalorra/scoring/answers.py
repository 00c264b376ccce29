"""One line for each record: the answer, or what is wrong with the record."""

import math
from collections.abc import Sequence
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

    def predict(self, prompts: Sequence[Prompt], /) -> list[Prediction]:
        """Answers any number of prompts, order kept."""


def answer(predictor: Scorer, questions: Sequence[Question]) -> list[Line]:
    """Answers a window; the lines are in the order of `questions`.

    Raises:
        FloatingPointError: the forward gave a probability that is not a number.
    """
    lines: dict[int, Line] = {}
    prompts: dict[int, Prompt] = {}
    for question in questions:
        try:
            if question.fields is None:
                raise InputError(str(question.problem))
            prompts[question.record] = predictor.encode(question.fields)
        except InputError as error:
            lines[question.record] = _line(question.record, error=str(error))
    predictions = predictor.predict(list(prompts.values()))
    for (record, prompt), prediction in zip(prompts.items(), predictions, strict=True):
        lines[record] = _answer_line(record, prompt, prediction, predictor.policy)
    return [lines[question.record] for question in questions]


def _answer_line(record: int, prompt: Prompt, prediction: Prediction, policy: Policy) -> Line:
    if not math.isfinite(prediction.probability + prediction.variance):
        raise FloatingPointError(
            f"row {record}: the forward gave a probability that is not a number"
        )
    verdict = policy.decide(prediction)
    return _line(
        record,
        label=prediction.label,
        probability=prediction.probability,
        variance=prediction.variance,
        decision=str(verdict.decision),
        reason=verdict.reason,
        probabilities=prediction.probabilities,
        entropy=prediction.entropy,
        mutual_information=prediction.mutual_information,
        novelty=prediction.novelty,
        truncated=prompt.truncated,
    )


def _line(record: int, **known: object) -> Line:
    return {"row": record, **{name: known.get(name) for name in ANSWER_COLUMNS}}
