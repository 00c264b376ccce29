"""From inputs to the bodies that answer them, whichever door they came through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.api.schemas import PredictOptions, PredictResponse
from service.engine import Answer
from service.feedback import Ledger
from service.lifecycle import Lifecycle
from service.telemetry import Telemetry

if TYPE_CHECKING:
    from dalorra.adapter.manifest import Card
    from dalorra.decision.policy import Verdict
    from dalorra.prompts import InputFields
    from service.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Reply:
    """The answers to one request.

    Attributes:
        bodies: one for each input, in their order.
        facts: for the log.
        server_timing: the header of that name.
    """

    bodies: list[PredictResponse]
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

    async def answer(
        self,
        inputs: Sequence[InputFields],
        request_ids: Sequence[str],
        options: PredictOptions,
        *,
        client: bytes | None = None,
    ) -> Reply:
        """Answers at least one input; all of them or none.

        Args:
            inputs: strings, or the template's fields.
            request_ids: one for each.
            options: the same for all.
            client: digest of the key that asks, if keys are needed; see `Engine.predict`.

        Raises:
            InputError, ServiceError: see `Adapters.find`, `Policy.at` and `Engine.predict`.
        """
        engine = self._lifecycle.engine
        predictor = self._lifecycle.adapters.find(options.adapter)
        policy, target = predictor.policy, options.target_error
        policy = policy if target is None else policy.at(target)
        answers = await engine.predict(
            predictor, inputs, within=self._timeout_seconds, client=client
        )
        if self._tracing is not None:
            self._tracing.stages(answers)
        predictions = [one.prediction for one in answers]
        verdicts = [self._ledger.guard(predictor, policy.decide(one)) for one in predictions]
        bodies = [
            _body(one, predictor.card, verdict, request_id, options.return_samples)
            for one, verdict, request_id in zip(answers, verdicts, request_ids, strict=True)
        ]
        self._ledger.keep(predictor, inputs, predictions, bodies)
        for prediction, verdict in zip(predictions, verdicts, strict=True):
            self._telemetry.answered(predictor.card.adapter, prediction, verdict.decision)
        timings = _timings(answers)
        facts = {
            "adapter": predictor.card.adapter,
            "inputs": len(answers),
            "tokens": sum(one.tokens for one in answers),
            "truncated": sum(one.truncated for one in answers),
            "decisions": dict(Counter(str(verdict.decision) for verdict in verdicts)),
            **{f"{stage}_ms": milliseconds for stage, milliseconds in timings.items()},
            **({"texts": list(inputs)} if self._log_inputs else {}),
        }
        server_timing = ", ".join(
            f"{stage};dur={milliseconds}" for stage, milliseconds in timings.items()
        )
        return Reply(bodies, facts, server_timing)


def _body(
    answer: Answer, card: Card, verdict: Verdict, request_id: str, return_samples: bool
) -> PredictResponse:
    prediction = answer.prediction
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
        truncated=answer.truncated,
        model=card.model,
        adapter=card.adapter,
        request_id=request_id,
        **samples,  # left out rather than null: the answer has the field only where asked for
    )


def _timings(answers: Sequence[Answer]) -> dict[str, float]:
    """Milliseconds of each stage; of a batch, those of its slowest input."""
    return {
        "tokenize": round(1e3 * max(one.tokenize_seconds for one in answers), 3),
        "queue": round(1e3 * max(one.queue_seconds for one in answers), 3),
        "inference": round(1e3 * max(one.inference_seconds for one in answers), 3),
    }
