"""System One: typed questions about a state, by the name that the client gives each.

Packages of others are the reference: `typesafe-sdk` asks, `jevcompat` checks.
"""

from __future__ import annotations

from calendar import timegm
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, WithJsonSchema

from dalorra.errors import InputError, TooLongError
from dalorra.questions import LIMITS, Option, Question, as_text
from service.api import problems
from service.api.answering import takes_questions
from service.api.callers import Caller, caller_of
from service.api.confidence import choice_confidence, score_confidence
from service.api.error_forms import MODELS, SYSTEMONE, documented, systemone
from service.api.question_schemas import NOTHING_GENERATED, QUESTION_ERRORS, OwnFields, body_of
from service.api.questions import Answered, Models, Options, QuestionsReply, TypedQuestions
from service.api.routes import NOT_NOW, note, unless_gone
from service.api.schemas import BodyPart, ResponseBody
from service.api.strict_json import read_body
from service.engine import Predictor
from service.errors import Fault, InvalidBodyError
from service.settings import Settings

DEFAULT_MODEL = "jev-latest"


def _some_content(value: Any) -> Any:
    if not isinstance(value, str | dict | list):
        raise ValueError("must be a string, an object or an array")
    return value


def _no_assets(_: Any) -> Any:
    raise ValueError("this server reads text alone: leave assets out")


Content = Annotated[
    JsonValue,
    BeforeValidator(_some_content),
    WithJsonSchema({"type": ["string", "object", "array"]}),
]
"""Text, or anything that is read as JSON."""


class NoulCriteria(BodyPart):
    """What counts as yes and as no."""

    true: Content | None = None
    false: Content | None = None


class NoulQuestion(BodyPart):
    """Whether something is so."""

    type: Literal["noul"]
    instructions: Content | None = None
    criteria: NoulCriteria | None = None


class ChoiceQuestion(BodyPart):
    """Which one of several options."""

    type: Literal["choice"]
    instructions: Content | None = None
    criteria: dict[str, Content | None] = Field(
        min_length=LIMITS["choice"][0],
        max_length=LIMITS["choice"][1],
        description="Options, each with a description or null.",
    )


class ScoreQuestion(BodyPart):
    """Which one of several levels."""

    type: Literal["score"]
    instructions: Content | None = None
    criteria: list[Content] = Field(
        min_length=LIMITS["score"][0],
        max_length=LIMITS["score"][1],
        description="Levels, the lowest first.",
    )


TypedQuestion = Annotated[
    NoulQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")
]

_REQUEST: dict[str, JsonValue] = {
    "state": "This movie was fantastic!",
    "questions": {"positive": {"type": "noul", "instructions": "Is this review positive?"}},
}


class StateAndQuestions(BaseModel):
    """A state and questions about it, by names of the client's. Unknown fields are ignored."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", json_schema_extra={"examples": [_REQUEST]}
    )

    state: Content = Field(description="What the questions are about.")
    questions: dict[Annotated[str, Field(min_length=1)], TypedQuestion] = Field(min_length=1)


class SystemOneRequest(StateAndQuestions):
    """A state, questions about it, and who is asked."""

    model: str = Field(
        DEFAULT_MODEL, description="An adapter, or what stands for the questions adapter."
    )
    assets: Annotated[None, BeforeValidator(_no_assets)] = Field(
        None, description="Not read: send text."
    )
    x_return_samples: bool = Field(
        False, description="Whether to add x_sample_probabilities to each answer."
    )
    x_target_error: float | None = Field(
        None, description="As target_error of /predict: a lower error rate among accepted answers."
    )


class NoulAnswer(OwnFields):
    """How probable a yes is."""

    type: Literal["noul"] = "noul"
    noul: float = Field(ge=0, le=1)


class ChoiceAnswer(OwnFields):
    """The most probable option."""

    type: Literal["choice"] = "choice"
    choice: str
    probabilities: dict[str, float]
    confidence: float = Field(ge=0, le=1)


class ScoreAnswer(OwnFields):
    """The expected level."""

    type: Literal["score"] = "score"
    score: float
    legend: dict[str, JsonValue]
    probabilities: dict[str, float]
    confidence: float = Field(ge=0, le=1)


TypedAnswer = Annotated[NoulAnswer | ChoiceAnswer | ScoreAnswer, Field(discriminator="type")]


class Usage(ResponseBody):
    """Tokens: those of the state count once, and none is generated."""

    input_tokens: int = Field(ge=0)
    output_tokens: int = Field(ge=0)


class SystemOneResponse(ResponseBody):
    """One answer for each question, by its name."""

    model: str = Field(description="The adapter that answered.")
    answers: dict[str, TypedAnswer]
    usage: Usage


class ModelInfo(ResponseBody):
    """One name that requests may give as their model."""

    name: str
    description: str
    release_date: str = Field(description="YYYY-MM-DD.")


class ModelEntry(ResponseBody):
    """The same as OpenAI lists it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "dalorra"


class ModelsResponse(ResponseBody):
    """Every name that requests may give as their model, in the lists of both protocols."""

    models: list[ModelInfo]
    object: Literal["list"] = "list"
    data: list[ModelEntry]


def systemone_routes(settings: Settings, questions: TypedQuestions) -> APIRouter:
    """Where System One's clients ask."""
    router = APIRouter(tags=["typed questions"])
    today = datetime.now(UTC).date()

    @router.post(
        SYSTEMONE,
        responses=documented(systemone, *QUESTION_ERRORS),
        response_model_exclude_unset=True,
        openapi_extra=body_of(SystemOneRequest),
    )
    async def system_one(request: Request, response: Response) -> SystemOneResponse:
        """Answers typed questions about a state."""
        body = await read_body(request, SystemOneRequest, settings.max_body_bytes)
        work = answer(questions, body, caller_of(request))
        answered, reply = await unless_gone(request, work)
        note(reply.reply, request, response)
        return answered

    @router.get(MODELS, responses=documented(systemone, problems.UNAUTHORIZED, *NOT_NOW))
    async def models() -> ModelsResponse:
        """What requests to /v1/systemone and /v1/decisions may give as their model."""
        return _listed(questions.models, today)

    return router


async def answer(
    questions: TypedQuestions, body: SystemOneRequest, caller: Caller
) -> tuple[SystemOneResponse, QuestionsReply]:
    """The response to a request.

    Raises:
        InvalidBodyError: a question cannot be asked; its fault leads to it.
        ServiceError: see `TypedQuestions.ask`.
    """
    asked = {name: question_of(one, ("questions", name)) for name, one in body.questions.items()}
    options = Options(body.model, body.x_return_samples, body.x_target_error)
    try:
        reply = await questions.ask(body.state, list(asked.values()), caller, options)
    except TooLongError:
        raise
    except InputError as error:
        path = () if error.place is None else ("questions", list(asked)[error.place])
        raise InvalidBodyError(Fault(path, str(error), "value_error")) from None
    answers = {
        name: _answer(one, body.questions[name])
        for name, one in zip(asked, reply.answers, strict=True)
    }
    usage = Usage(input_tokens=reply.tokens, output_tokens=NOTHING_GENERATED)
    return SystemOneResponse(model=reply.model, answers=answers, usage=usage), reply


_UNSAID: Mapping[str, str] = {
    "noul": "Is it so?",
    "choice": "Which one is it?",
    "score": "Which level is it?",
}
"""Instructions of questions that leave all to their criteria."""


def question_of(asked: TypedQuestion, place: tuple[str, ...] = ()) -> Question:
    """A question as it was written.

    Args:
        asked: see the protocol.
        place: of it in the body, for messages.

    Raises:
        InvalidBodyError: it cannot be asked.
    """
    instructions = as_text(asked.instructions or "").strip() or _UNSAID[asked.type]
    path = (*place, asked.type)
    try:
        match asked:
            case NoulQuestion():
                means = asked.criteria or NoulCriteria()
                if not asked.instructions and means.true is None and means.false is None:
                    message = "a noul needs instructions, or criteria that say what it is about"
                    raise InvalidBodyError(Fault(path, message, "missing"))
                return Question.noul(instructions, _said(means.true), _said(means.false))
            case ChoiceQuestion():
                options = (Option(o, _said(text)) for o, text in asked.criteria.items())
                return Question("choice", instructions, tuple(options))
            case ScoreQuestion():
                levels = (Option(as_text(level)) for level in asked.criteria)
                return Question("score", instructions, tuple(levels))
    except InputError as error:
        raise InvalidBodyError(Fault(path, str(error), "value_error")) from None


def _said(description: JsonValue) -> str:
    return "" if description is None else as_text(description)


def _answer(
    answered: Answered, asked: NoulQuestion | ChoiceQuestion | ScoreQuestion
) -> NoulAnswer | ChoiceAnswer | ScoreAnswer:
    p, names = answered.probabilities, [option.name for option in answered.question.options]
    match asked:
        case NoulQuestion():
            return NoulAnswer(type="noul", noul=answered.yes, **answered.own)
        case ChoiceQuestion():
            return ChoiceAnswer(
                type="choice",
                choice=names[answered.chosen],
                probabilities=dict(zip(names, p, strict=True)),
                confidence=choice_confidence(p),
                **answered.own,
            )
        case ScoreQuestion():
            return ScoreAnswer(
                type="score",
                score=answered.score,
                legend={str(level): text for level, text in enumerate(asked.criteria)},
                probabilities={str(level): one for level, one in enumerate(p)},
                confidence=score_confidence(p),
                **answered.own,
            )


def _listed(models: Models, today: date) -> ModelsResponse:
    """What can be named: what stands for the default, then each adapter.

    An adapter's date is that of its policy, or, where it has none, the one of the server's start.
    """
    standing = f"Stands for {', '.join(one.card.adapter for one in models.default)}."
    named = [(name, standing, models.default[0]) for name in models.aliases if models.default]
    named += [(one.card.adapter, _about(one), one) for one in models.served]
    dates = [
        date.fromisoformat(one.policy.date[:10]) if one.policy.date else today for *_, one in named
    ]
    return ModelsResponse(
        models=[
            ModelInfo(name=name, description=text, release_date=day.isoformat())
            for (name, text, _), day in zip(named, dates, strict=True)
        ],
        data=[
            ModelEntry(id=name, created=timegm(day.timetuple()))
            for (name, *_), day in zip(named, dates, strict=True)
        ],
    )


def _about(predictor: Predictor) -> str:
    if takes_questions(predictor):
        return "Answers typed questions."
    words = ", ".join(repr(one.instructions) for one in predictor.registered)
    return f"Answers, word for word: {words}."
