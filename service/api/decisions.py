"""Decisions in OpenAI's form: a list of questions about a text or a conversation.

The package `openai` is the reference: its types say what is sent and what is read.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool, StrictStr

from dalorra.errors import InputError, TooLongError
from dalorra.questions import LIMITS, Option, Question
from service.api.callers import Caller, caller_of
from service.api.confidence import choice_confidence, score_confidence
from service.api.conversation import Conversation, Words, rendered, spoken
from service.api.error_forms import DECISIONS, documented, openai
from service.api.question_schemas import NOTHING_GENERATED, QUESTION_ERRORS, OwnFields, body_of
from service.api.questions import Answered, Options, QuestionsReply, TypedQuestions
from service.api.routes import note, unless_gone
from service.api.schemas import BodyPart, ResponseBody
from service.api.strict_json import read_body
from service.errors import Fault, InvalidBodyError
from service.settings import Settings

MOST_QUESTIONS = 400

Value = StrictStr | StrictBool
"""What a choice is called; a text and a truth are different, whatever they look like."""


class PredicateQuestion(BodyPart):
    """How likely it is that something is so."""

    type: Literal["predicate"]
    name: str | None = None
    instructions: Words


class ChoiceOption(BodyPart):
    """What can be chosen."""

    value: Value
    description: str | None = None


class ChoiceQuestion(BodyPart):
    """Which one of several values."""

    type: Literal["choice"]
    name: str | None = None
    instructions: Words
    choices: list[ChoiceOption] = Field(
        min_length=LIMITS["choice"][0], max_length=LIMITS["choice"][1]
    )


class Level(BodyPart):
    """One step of a scale."""

    label: str
    description: str | None = None


class ScoreQuestion(BodyPart):
    """Which one of several levels."""

    type: Literal["score"]
    name: str | None = None
    instructions: Words
    levels: list[Level] = Field(
        min_length=LIMITS["score"][0],
        max_length=LIMITS["score"][1],
        description="The lowest first.",
    )


AnyQuestion = PredicateQuestion | ChoiceQuestion | ScoreQuestion

_REQUEST: dict[str, JsonValue] = {
    "model": "gpt-6-luna",
    "input": "This movie was fantastic!",
    "questions": [{"type": "predicate", "instructions": "Is this review positive?"}],
}


class DecisionsRequest(BaseModel):
    """An input and questions about it. Fields that are not known are ignored."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", json_schema_extra={"examples": [_REQUEST]}
    )

    model: str = Field(description="An adapter, or what stands for the questions adapter.")
    input: Conversation = Field(description="What the questions are about.")
    questions: list[Annotated[AnyQuestion, Field(discriminator="type")]] = Field(
        min_length=1, max_length=MOST_QUESTIONS
    )
    x_return_samples: bool = Field(
        False, description="Whether to add x_sample_probabilities to each answer."
    )
    x_target_error: float | None = Field(
        None, description="As target_error of /predict: a lower error rate among accepted answers."
    )


class PredicateAnswer(OwnFields):
    """How probable it is."""

    type: Literal["predicate"]
    name: str | None
    probability: float = Field(ge=0, le=1)


class ChoiceProbability(ResponseBody):
    """Of one value."""

    value: Value
    probability: float


class ChoiceAnswer(OwnFields):
    """The most probable value."""

    type: Literal["choice"]
    name: str | None
    choice: Value
    confidence: float = Field(ge=0, le=1)
    probabilities: list[ChoiceProbability]


class ScoreProbability(ResponseBody):
    """Of one level."""

    value: int
    label: str
    probability: float


class ScoreAnswer(OwnFields):
    """The expected level."""

    type: Literal["score"]
    name: str | None
    score: float
    confidence: float = Field(ge=0, le=1)
    probabilities: list[ScoreProbability]


class Refusal(OwnFields):
    """The answer is not accepted, and the server is set to keep such answers to itself."""

    type: Literal["refusal"]
    name: str | None


AnyAnswer = PredicateAnswer | ChoiceAnswer | ScoreAnswer | Refusal


class InputTokensDetails(ResponseBody):
    """What was at hand of the input."""

    cached_tokens: int = Field(
        description="Read before, for this key: what others sent is found, too, but not told."
    )
    cache_write_tokens: int = Field(description="0: nobody is charged for what is kept.")


class OutputTokensDetails(ResponseBody):
    """What was thought aloud: nothing."""

    reasoning_tokens: int


class Usage(ResponseBody):
    """Tokens: those of the input count once, and none is generated."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class DecisionsResponse(ResponseBody):
    """Answers in the order of the questions."""

    model: str = Field(description="The adapter that answered.")
    answers: list[Annotated[AnyAnswer, Field(discriminator="type")]]
    usage: Usage


def decisions_routes(settings: Settings, questions: TypedQuestions) -> APIRouter:
    """Where clients of OpenAI's decisions ask."""
    router = APIRouter(tags=["typed questions"])

    @router.post(
        DECISIONS,
        responses=documented(openai, *QUESTION_ERRORS),
        response_model_exclude_unset=True,
        openapi_extra=body_of(DecisionsRequest),
    )
    async def decisions(request: Request, response: Response) -> DecisionsResponse:
        """Answers typed questions about a text or a conversation."""
        body = await read_body(request, DecisionsRequest, settings.max_body_bytes)
        reply = await unless_gone(request, _ask(questions, body, caller_of(request)))
        note(reply.reply, request, response)
        return _response(body, reply, refuses=settings.refuse_unaccepted)

    return router


async def _ask(questions: TypedQuestions, body: DecisionsRequest, caller: Caller) -> QuestionsReply:
    asked = [_question(place, one) for place, one in enumerate(body.questions)]
    options = Options(body.model, body.x_return_samples, body.x_target_error)
    try:
        return await questions.ask(rendered(body.input), asked, caller, options)
    except TooLongError:
        raise
    except InputError as error:
        path = () if error.place is None else ("questions", error.place)
        raise InvalidBodyError(Fault(path, str(error), "value_error")) from None


def _question(place: int, asked: AnyQuestion) -> Question:
    instructions = spoken(asked.instructions)
    try:
        match asked:
            case PredicateQuestion():
                return Question.noul(instructions)
            case ChoiceQuestion():
                options = (
                    Option(_named(one.value), one.description or "") for one in asked.choices
                )
                return Question("choice", instructions, tuple(options))
            case ScoreQuestion():
                levels = (Option(one.label, one.description or "") for one in asked.levels)
                return Question("score", instructions, tuple(levels))
    except InputError as error:
        raise InvalidBodyError(Fault(("questions", place), str(error), "value_error")) from None


def _named(value: str | bool) -> str:
    return value if isinstance(value, str) else str(value).lower()


def _response(body: DecisionsRequest, reply: QuestionsReply, *, refuses: bool) -> DecisionsResponse:
    return DecisionsResponse(
        model=reply.model,
        answers=[
            Refusal(type="refusal", name=asked.name, **one.own)
            if refuses and not one.accepted
            else _answer(one, asked)
            for asked, one in zip(body.questions, reply.answers, strict=True)
        ],
        usage=Usage(
            input_tokens=reply.tokens,
            input_tokens_details=InputTokensDetails(
                cached_tokens=reply.cached_tokens, cache_write_tokens=0
            ),
            output_tokens=NOTHING_GENERATED,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=NOTHING_GENERATED),
            total_tokens=reply.tokens + NOTHING_GENERATED,
        ),
    )


def _answer(answered: Answered, asked: AnyQuestion) -> AnyAnswer:
    p = answered.probabilities
    match asked:
        case PredicateQuestion():
            return PredicateAnswer(
                type="predicate", name=asked.name, probability=answered.yes, **answered.own
            )
        case ChoiceQuestion():
            values = [one.value for one in asked.choices]
            return ChoiceAnswer(
                type="choice",
                name=asked.name,
                choice=values[answered.chosen],
                confidence=choice_confidence(p),
                probabilities=[
                    ChoiceProbability(value=value, probability=one)
                    for value, one in zip(values, p, strict=True)
                ],
                **answered.own,
            )
        case ScoreQuestion():
            return ScoreAnswer(
                type="score",
                name=asked.name,
                score=answered.score,
                confidence=score_confidence(p),
                probabilities=[
                    ScoreProbability(value=level, label=one.label, probability=probability)
                    for level, (one, probability) in enumerate(zip(asked.levels, p, strict=True))
                ],
                **answered.own,
            )
