"""From inputs to the bodies that answer them, whichever door they came through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dalorra.errors import InputError, TooLongError
from service.api.callers import Caller
from service.api.schemas import PredictOptions, PredictResponse
from service.engine import Answer, Predictor
from service.feedback import Ledger, Told
from service.feedback.records import readable
from service.lifecycle import Lifecycle
from service.telemetry import Telemetry

if TYPE_CHECKING:
    from dalorra.adapter.manifest import Card
    from dalorra.decision.policy import Policy, Verdict
    from dalorra.decision.predictive import Prediction
    from dalorra.prompts import InputFields
    from service.engine.interfaces import Input
    from service.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Query:
    """One input and who answers it.

    Attributes:
        predictor: answers it.
        value: the input.
        caller: whose the answer is, and what names it.
        called: what the client calls each label, where that is not its name.
    """

    predictor: Predictor
    value: Input
    caller: Caller
    called: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Decided:
    """What was answered to a query, and what to do with it."""

    query: Query
    answer: Answer
    policy: Policy
    verdict: Verdict

    @property
    def prediction(self) -> Prediction:
        """The predictive moments."""
        return self.answer.prediction

    @property
    def card(self) -> Card:
        """Who answered."""
        return self.query.predictor.card

    @property
    def told(self) -> Told:
        """What is kept of it for feedback."""
        query = self.query
        return Told(
            query.caller.request_id,
            query.value,
            self.prediction,
            self.verdict.decision,
            query.called,
            query.caller.owner,
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """The answers to one request.

    Attributes:
        decided: one for each query, in their order.
        facts: for the log.
        server_timing: the header of that name.
    """

    decided: list[Decided]
    facts: dict[str, Any]
    server_timing: str


class Answering:
    """Asks the engine, decides, and counts.

    Args:
        lifecycle: has the engine.
        telemetry: counts decisions and labels.
        ledger: keeps the answers, and knows whether the promise holds.
        timeout_seconds: for all inputs of one request together.
        tracing: makes spans of what was done, if there is one.
        log_inputs: whether the log has the inputs, too.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        telemetry: Telemetry,
        ledger: Ledger,
        *,
        timeout_seconds: float,
        tracing: Tracing | None = None,
        log_inputs: bool = False,
    ) -> None:
        self._lifecycle = lifecycle
        self._telemetry = telemetry
        self._ledger = ledger
        self._timeout_seconds = timeout_seconds
        self._tracing = tracing
        self._log_inputs = log_inputs

    async def predict(
        self,
        inputs: Sequence[InputFields],
        callers: Sequence[Caller],
        options: PredictOptions,
    ) -> tuple[list[PredictResponse], Reply]:
        """Answers inputs of an adapter with labels of its own, see `answer`.

        Args:
            inputs: at least one; strings, or the template's fields.
            callers: one for each, with the name of its answer.
            options: the same for all.

        Raises:
            InputError, ServiceError: see `Adapters.find`, `Policy.at` and `answer`.
        """
        predictor = self._lifecycle.adapters.find(options.adapter)
        check_has_labels(predictor)
        queries = [
            Query(predictor, value, caller) for value, caller in zip(inputs, callers, strict=True)
        ]
        reply = await self.answer(queries, options.target_error)
        return [_body(one, options.return_samples) for one in reply.decided], reply

    async def answer(
        self,
        queries: Sequence[Query],
        target_error: float | None = None,
        *,
        uncut: bool = False,
    ) -> Reply:
        """Answers at least one query; all of them or none.

        Args:
            queries: of one caller, to any adapters.
            target_error: see `Policy.at`.
            uncut: whether an input is refused of which not everything was read.

        Raises:
            TooLongError: an input is longer than its adapter reads, and it is to be `uncut`.
            InputError, ServiceError: see `Policy.at` and `Engine.predict_each`.
        """
        engine = self._lifecycle.engine
        policies = [_at(query.predictor.policy_for(query.value), target_error) for query in queries]
        asked = [(query.predictor, query.value) for query in queries]
        client = queries[0].caller.owner or None  # without keys nobody has a share
        answers = await engine.predict_each(asked, within=self._timeout_seconds, client=client)
        if self._tracing is not None:
            self._tracing.stages(answers)
        if uncut:
            _refuse_cut(queries, answers)
        decided = [
            self._decide(query, answer, policy)
            for query, answer, policy in zip(queries, answers, policies, strict=True)
        ]
        for predictor in dict.fromkeys(query.predictor for query in queries):
            told = [one.told for one in decided if one.query.predictor is predictor]
            self._ledger.keep(predictor, told)
        for one in decided:
            self._telemetry.answered(one.card.adapter, one.prediction, one.verdict.decision)
        timings = _timings(answers)
        adapters = list(dict.fromkeys(one.card.adapter for one in decided))
        facts = {
            "adapter": ",".join(adapters),
            "inputs": len(answers),
            "tokens": sum(one.tokens for one in answers),
            "truncated": sum(one.truncated for one in answers),
            "decisions": dict(Counter(str(one.verdict.decision) for one in decided)),
            **{f"{stage}_ms": milliseconds for stage, milliseconds in timings.items()},
            **({"texts": [readable(query.value) for query in queries]} if self._log_inputs else {}),
        }
        server_timing = ", ".join(
            f"{stage};dur={milliseconds}" for stage, milliseconds in timings.items()
        )
        return Reply(decided, facts, server_timing)

    def _decide(self, query: Query, answer: Answer, policy: Policy) -> Decided:
        verdict = self._ledger.guard(query.predictor, policy.decide(answer.prediction))
        return Decided(query, answer, policy, verdict)


def takes_questions(predictor: Predictor) -> bool:
    """Whether an adapter answers questions that come with their options."""
    return not predictor.labels


def check_has_labels(predictor: Predictor) -> None:
    """Refuses what only an adapter with labels of its own can do.

    Raises:
        InputError: the labels come with the questions.
    """
    if takes_questions(predictor):
        raise InputError(
            f"adapter {predictor.card.adapter!r} answers questions that come with their options: "
            "send a state and questions to POST /v1/systemone"
        )


def _at(policy: Policy, target_error: float | None) -> Policy:
    return policy if target_error is None else policy.at(target_error)


def _refuse_cut(queries: Sequence[Query], answers: Sequence[Answer]) -> None:
    for place, (query, answer) in enumerate(zip(queries, answers, strict=True)):
        if answer.truncated:
            predictor = query.predictor
            raise TooLongError(
                f"the input takes more than the {predictor.max_tokens} tokens that adapter "
                f"{predictor.card.adapter!r} reads: shorten it",
                place,
            )


def _body(decided: Decided, return_samples: bool) -> PredictResponse:
    prediction, verdict, card = decided.prediction, decided.verdict, decided.card
    samples = (
        {"sample_probabilities": list(prediction.sample_probabilities)} if return_samples else {}
    )
    return PredictResponse(
        label=prediction.label,
        probability=prediction.probability,
        variance=prediction.variance,
        decision=verdict.decision,
        reason=verdict.reason,
        probabilities=prediction.probabilities,
        entropy=prediction.entropy,
        mutual_information=prediction.mutual_information,
        standard_error=prediction.standard_error,
        novelty=prediction.novelty,
        samples=prediction.samples,
        truncated=decided.answer.truncated,
        model=card.model,
        adapter=card.adapter,
        request_id=decided.query.caller.request_id,
        **samples,  # left out rather than null: the answer has the field only where asked for
    )


def _timings(answers: Sequence[Answer]) -> dict[str, float]:
    """Milliseconds of each stage; of a batch, those of its slowest input."""
    return {
        "tokenize": round(1e3 * max(one.tokenize_seconds for one in answers), 3),
        "queue": round(1e3 * max(one.queue_seconds for one in answers), 3),
        "inference": round(1e3 * max(one.inference_seconds for one in answers), 3),
    }
