"""From inputs to the bodies that answer them, whichever door they came through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.api.schemas import PredictResponse
from service.engine import Answer, Predictor
from service.feedback import Ledger
from service.lifecycle import Lifecycle
from service.settings import Samples
from service.telemetry import Telemetry

if TYPE_CHECKING:
    from dalorra.decision.policy import Policy, Verdict
    from dalorra.prompts import InputFields
    from service.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Answered:
    """Bodies in the order of the inputs, and what it took.

    Attributes:
        bodies: one for each input.
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
        samples: what a request gets that does not say.
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
        samples: Samples = "full",
        log_inputs: bool = False,
    ) -> None:
        self._lifecycle = lifecycle
        self._telemetry = telemetry
        self._ledger = ledger
        self._timeout_seconds = timeout_seconds
        self._tracing = tracing
        self._samples = samples
        self._log_inputs = log_inputs

    async def answer(
        self,
        inputs: Sequence[InputFields],
        request_ids: Sequence[str],
        *,
        adapter: str | None = None,
        return_samples: bool = False,
        target_error: float | None = None,
        samples: Samples | None = None,
    ) -> Answered:
        """Answers at least one input; all of them or none.

        Args:
            inputs: strings, or the template's fields.
            request_ids: one for each.
            adapter: which one answers; the default if none is named.
            return_samples: whether the bodies have `sample_probabilities`.
            target_error: stricter than the policy's, for these inputs.
            samples: whether all are used, or as many as label and decision need.

        Raises:
            InputError, ServiceError: see `Adapters.find`, `Policy.at` and `Engine.predict`.
        """
        engine = self._lifecycle.engine
        predictor = self._lifecycle.adapters.find(adapter)
        policy = predictor.policy if target_error is None else predictor.policy.at(target_error)
        auto = (samples or self._samples) == "auto"
        # What is kept counts by the policy's own decision, which must be as certain.
        decider = policy if auto and not (self._ledger.on and target_error is not None) else None
        answers = await engine.predict(
            predictor, inputs, within=self._timeout_seconds, decider=decider
        )
        if self._tracing is not None:
            self._tracing.stages(answers)
        bodies = [
            _body(one, predictor, self._decide(one, predictor, policy), request_id, return_samples)
            for one, request_id in zip(answers, request_ids, strict=True)
        ]
        predictions = [one.prediction for one in answers]
        self._ledger.keep(predictor, inputs, predictions, bodies)
        for one, body in zip(answers, bodies, strict=True):
            early = body.samples < predictor.samples
            self._telemetry.answered(
                predictor.adapter_name, one, body.decision, stopped_early=early
            )
        timings = _timings(answers)
        facts = {
            "adapter": predictor.adapter_name,
            "inputs": len(answers),
            "tokens": sum(one.tokens for one in answers),
            "truncated": sum(one.truncated for one in answers),
            "decisions": dict(Counter(str(body.decision) for body in bodies)),
            **{f"{stage}_ms": milliseconds for stage, milliseconds in timings.items()},
            **({"texts": list(inputs)} if self._log_inputs else {}),
        }
        server_timing = ", ".join(
            f"{stage};dur={milliseconds}" for stage, milliseconds in timings.items()
        )
        return Answered(bodies, facts, server_timing)

    def _decide(self, answer: Answer, predictor: Predictor, policy: Policy) -> Verdict:
        prediction = answer.prediction
        verdict = policy.decide(prediction.probability, prediction.variance, prediction.novelty)
        return self._ledger.guard(predictor, verdict)


def _body(
    answer: Answer, predictor: Predictor, verdict: Verdict, request_id: str, return_samples: bool
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
        model=predictor.model_name,
        adapter=predictor.adapter_name,
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
