"""Typed questions: which adapter answers each, and what is made of its answer.

The protocols differ in how they write questions and answers; this is what they have in common. A
question in words that a labelled adapter is registered for is answered by that adapter, with its
policy's promise; any other by the questions adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from dalorra.decision.policy import Decision
from dalorra.errors import InputError
from dalorra.questions import NO, YES, Asked, Question, as_text
from service.api.answering import Answering, Decided, Query, Reply, takes_questions
from service.api.callers import Caller
from service.api.question_schemas import Promise
from service.errors import Fault, InvalidBodyError, UnknownAdapterError

if TYPE_CHECKING:
    from dalorra.decision.policy import Policy
    from dalorra.prompts import InputFields
    from service.adapters import Adapters
    from service.engine import Predictor
    from service.engine.interfaces import Input
    from service.lifecycle import Lifecycle
    from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Options:
    """What can be asked for beside answers.

    Attributes:
        model: an adapter, or what stands for the questions adapter.
        return_samples: whether to add each sample's probability.
        target_error: see `Policy.at`.
    """

    model: str
    return_samples: bool = False
    target_error: float | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Who answers a question, what it is asked, and which of its labels each option is."""

    predictor: Predictor
    value: Input
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to one question.

    Attributes:
        question: what was asked.
        probabilities: of its options, in their order.
        chosen: place of the most probable one.
        own: what this server says beyond the protocol, by name of the field.
        accepted: whether it may be believed.
    """

    question: Question
    probabilities: tuple[float, ...]
    chosen: int
    own: Mapping[str, Any]
    accepted: bool

    @property
    def yes(self) -> float:
        """Of a noul, the probability of yes."""
        names = (option.name for option in self.question.options)
        return dict(zip(names, self.probabilities, strict=True))[YES]

    @property
    def score(self) -> float:
        """Σ i·p_i."""
        return sum(level * p for level, p in enumerate(self.probabilities))


@dataclass(frozen=True, slots=True)
class QuestionsReply:
    """The answers to one request.

    Attributes:
        answers: in the order of the questions.
        model: who answered, the questions adapter if it answered any.
        tokens: read for all of them, the state once.
        cached_tokens: those that were at hand, as far as the caller sent them before.
        reply: what it took.
    """

    answers: list[Answered]
    model: str
    tokens: int
    cached_tokens: int
    reply: Reply


@dataclass(frozen=True, slots=True)
class Models:
    """Who can be asked.

    Attributes:
        general: answers any question, if there is one.
        registered: adapters that answer questions in words of their own.
        served: everyone who can be asked by name.
        aliases: names that stand for `general` and `registered`.
    """

    general: Predictor | None
    registered: tuple[Predictor, ...]
    served: tuple[Predictor, ...]
    aliases: tuple[str, ...]

    @property
    def default(self) -> tuple[Predictor, ...]:
        """Who is asked where an alias is named."""
        return (*((self.general,) if self.general else ()), *self.registered)


class TypedQuestions:
    """Answers typed questions about a state.

    Args:
        settings: names of models, and how many questions there may be.
        lifecycle: has the adapters.
        answering: answers.
    """

    def __init__(self, settings: Settings, lifecycle: Lifecycle, answering: Answering) -> None:
        self._settings = settings
        self._lifecycle = lifecycle
        self._answering = answering
        self._most = min(settings.max_questions, settings.max_queue_requests)

    @property
    def models(self) -> Models:
        """Who can be asked now."""
        adapters = self._lifecycle.adapters
        return Models(
            _general(adapters, self._settings.questions_adapter),
            tuple(one for one in adapters.served if one.registered),
            tuple(one for one in adapters.served if one.registered or takes_questions(one)),
            tuple(name for name in self._settings.question_models if name != "*"),
        )

    async def ask(
        self, state: JsonValue, questions: Sequence[Question], caller: Caller, options: Options
    ) -> QuestionsReply:
        """Answers at least one question; all of them or none.

        Args:
            state: what they are about.
            questions: at most as many as the settings allow.
            caller: names the request; each answer is named with its place after that.
            options: the same for all.

        Raises:
            InvalidBodyError: there are too many questions.
            TooLongError: a question and the state are longer than its adapter reads.
            InputError, ServiceError: see `Answering.answer`; no adapter answers a question, or
                none is called like that.
        """
        if len(questions) > self._most:
            sentence = f"{len(questions)} questions are more than the {self._most} of one request"
            raise InvalidBodyError(Fault(("questions",), f"{sentence}: send several", "too_long"))
        routes = self._routes(state, questions, options.model)
        queries = [
            Query(route.predictor, route.value, caller.at(place), _called(question, route))
            for place, (question, route) in enumerate(zip(questions, routes, strict=True))
        ]
        reply = await self._answering.answer(queries, options.target_error, uncut=True)
        answers = [
            _answered(question, route, one, options.return_samples)
            for question, route, one in zip(questions, routes, reply.decided, strict=True)
        ]
        asked = [route.predictor for route in routes]
        model = next(filter(takes_questions, asked), asked[0]).card.adapter
        return QuestionsReply(answers, model, _tokens(reply), _cached_tokens(reply), reply)

    def _routes(self, state: JsonValue, questions: Sequence[Question], model: str) -> list[Route]:
        named = {one.card.adapter: one for one in self._lifecycle.adapters.served}
        aliases = self._settings.question_models
        if model in named:
            only = named[model]
            general = only if takes_questions(only) else None
            registered: tuple[Predictor, ...] = () if general else (only,)
        elif model in aliases or "*" in aliases:
            general, registered = self.models.general, self.models.registered
        else:
            known = ", ".join(map(repr, (*aliases, *named)))
            raise UnknownAdapterError(f"no model of that name is served: ask for {known}")
        text = as_text(state)
        routes = []
        for place, question in enumerate(questions):
            route = _by_words(question, state, registered)
            if route is None and general is not None:
                names = tuple(option.name for option in question.options)
                route = Route(general, Asked(text, question), names)
            if route is None:
                raise InputError(_nobody(registered), place)
            routes.append(route)
        return routes


def _general(adapters: Adapters, name: str | None) -> Predictor | None:
    """The adapter that answers any question: the named one, or the first that can.

    Raises:
        UnknownAdapterError: the one that the settings name is not served.
    """
    if name is not None:
        return adapters.find(name)
    return next(filter(takes_questions, adapters.served), None)


def _by_words(
    question: Question, state: JsonValue, registered: Sequence[Predictor]
) -> Route | None:
    """The first adapter that is registered for these words and takes such a state."""
    for predictor in registered:
        for one in predictor.registered:
            labels = one.answers(question, predictor.labels)
            value = None if labels is None else _as_input(state, predictor.fields)
            if labels is not None and value is not None:
                return Route(predictor, value, labels)
    return None


def _as_input(state: JsonValue, fields: Sequence[str]) -> InputFields | None:
    """A state as the input of a template with these fields; None where it does not fit."""
    if isinstance(state, dict) and state.keys() == set(fields):
        texts = {name: value for name, value in state.items() if isinstance(value, str)}
        if len(texts) == len(fields):
            return texts
    return as_text(state) if len(fields) == 1 else None


def _nobody(registered: Sequence[Predictor]) -> str:
    """That a question has no answer here, and which ones have."""
    words = [
        f"{one.instructions!r} (about {', '.join(predictor.fields)})"
        for predictor in registered
        for one in predictor.registered
    ]
    if not words:
        return (
            "no adapter that is asked answers typed questions: load one that was trained on them, "
            "or register this question for one whose labels answer it"
        )
    return (
        "no adapter that is asked answers any question, and this is none of those that labelled "
        f"ones answer, word for word and without descriptions: {', '.join(words)}"
    )


def _called(question: Question, route: Route) -> dict[str, str]:
    """The label behind what a client calls each option: its name, or the number of a level."""
    options = enumerate(question.options)
    names = (str(level) if question.kind == "score" else option.name for level, option in options)
    return dict(zip(names, route.labels, strict=True))


def _answered(question: Question, route: Route, decided: Decided, return_samples: bool) -> Answered:
    prediction = decided.prediction
    chosen = route.labels.index(prediction.label)
    accepted = decided.verdict.decision is Decision.ACCEPT
    own: dict[str, Any] = {
        "x_decision": decided.verdict.decision,
        "x_reason": decided.verdict.reason,
        "x_variance": prediction.variance,
        "x_standard_error": prediction.standard_error,
        "x_novelty": prediction.novelty,
        "x_promise": _promise(decided.policy) if accepted else None,
        "x_samples": prediction.samples,
        "x_adapter": decided.card.adapter,
        "x_request_id": decided.query.caller.request_id,
    }
    if return_samples:
        no = question.kind == "noul" and question.options[chosen].name == NO
        of_chosen = prediction.sample_probabilities
        own["x_sample_probabilities"] = [1 - p for p in of_chosen] if no else list(of_chosen)
    probabilities = tuple(prediction.probabilities[label] for label in route.labels)
    return Answered(question, probabilities, chosen, own, accepted)


def _promise(policy: Policy) -> Promise | None:
    if policy.target_error is None or policy.confidence is None or policy.costs:
        return None
    return Promise(target_error=policy.target_error, confidence=policy.confidence)


def _tokens(reply: Reply) -> int:
    """Tokens that were read: of each adapter's questions the state once."""
    shared = {one.query.predictor: one.answer.shared_tokens for one in reply.decided}
    asked = sum(one.answer.tokens - one.answer.shared_tokens for one in reply.decided)
    return asked + sum(shared.values())


def _cached_tokens(reply: Reply) -> int:
    """Tokens of the state that each adapter had read before the request.

    The questions may have gone to the model one after the other: the first found the least.
    """
    found: dict[Predictor, int] = {}
    for one in reply.decided:
        predictor, cached = one.query.predictor, one.answer.cached_tokens
        found[predictor] = min(cached, found.get(predictor, cached))
    return sum(found.values())
