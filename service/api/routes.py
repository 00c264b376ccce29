"""The paths."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, TypeVar

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder

from service.api import errors
from service.api.schemas import (
    BatchRequest,
    BatchResponse,
    Health,
    InfoResponse,
    LimitsInfo,
    PredictRequest,
    PredictResponse,
)
from service.engine import Answer, Predictor
from service.errors import BatchTooLargeError, ClientGoneError
from service.lifecycle import Lifecycle
from service.settings import Settings
from service.telemetry import Telemetry, package_version

if TYPE_CHECKING:
    from dalorra.prompts import InputFields

T = TypeVar("T")


_NOT_NOW = (errors.LOADING, errors.DRAINING, errors.UNAVAILABLE)
_PREDICTION_ERRORS = errors.documented(
    errors.MALFORMED,
    errors.UNAUTHORIZED,
    errors.BODY_TOO_LARGE,
    errors.BATCH_TOO_LARGE,
    errors.INVALID,
    errors.QUEUE_FULL,
    errors.INFERENCE_FAILED,
    errors.INTERNAL,
    *_NOT_NOW,
    errors.DEADLINE,
)


def prediction_routes(settings: Settings, lifecycle: Lifecycle, telemetry: Telemetry) -> APIRouter:
    """What clients ask."""
    router = APIRouter(tags=["prediction"])

    async def answer(
        request: Request, response: Response, inputs: Sequence[InputFields]
    ) -> list[PredictResponse]:
        engine = lifecycle.engine
        answers = await _unless_gone(
            request, engine.predict(inputs, within=settings.request_timeout_seconds)
        )
        predictor = engine.predictor
        bodies = [_body(one, predictor, request.state.request_id) for one in answers]
        for one, body in zip(answers, bodies, strict=True):
            telemetry.answered(one, body.decision)
        timings = _timings(answers)
        response.headers["Server-Timing"] = ", ".join(
            f"{stage};dur={milliseconds}" for stage, milliseconds in timings.items()
        )
        request.state.facts = {
            "inputs": len(answers),
            "tokens": sum(one.tokens for one in answers),
            "truncated": sum(one.truncated for one in answers),
            "decisions": dict(Counter(str(body.decision) for body in bodies)),
            **{f"{stage}_ms": milliseconds for stage, milliseconds in timings.items()},
        }
        return bodies

    @router.post("/predict", responses=_PREDICTION_ERRORS)
    async def predict(
        body: PredictRequest, request: Request, response: Response
    ) -> PredictResponse:
        """Answers one input with a label, its probability, its variance, and a decision."""
        [prediction] = await answer(request, response, [body.input])
        return prediction

    @router.post("/predict/batch", responses=_PREDICTION_ERRORS)
    async def predict_batch(
        body: BatchRequest, request: Request, response: Response
    ) -> BatchResponse:
        """Answers several inputs, in their order; all of them or none."""
        if len(body.inputs) > settings.max_batch_inputs:
            raise BatchTooLargeError(
                f"{len(body.inputs)} inputs are more than the {settings.max_batch_inputs} of one "
                "request: send several"
            )
        return BatchResponse(predictions=await answer(request, response, body.inputs))

    return router


def operation_routes(settings: Settings, lifecycle: Lifecycle, telemetry: Telemetry) -> APIRouter:
    """What operators and their machines ask."""
    router = APIRouter(tags=["operation"])

    @router.get("/info", responses=errors.documented(errors.UNAUTHORIZED, *_NOT_NOW))
    async def info() -> InfoResponse:
        """What is served: model, adapter, labels, policy, limits."""
        return _info(lifecycle.engine.predictor, settings)

    @router.get("/health/live", responses=errors.documented(errors.UNAVAILABLE))
    async def live() -> Health:
        """200 unless only a restart can help."""
        if (reason := lifecycle.not_alive()) is not None:
            raise reason
        return Health(status="live")

    @router.get("/health/ready", responses=errors.documented(*_NOT_NOW))
    async def ready() -> Health:
        """200 while requests are taken."""
        if (reason := lifecycle.not_ready()) is not None:
            raise reason
        return Health(status="ready")

    @router.get("/metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        """For Prometheus, in its text format or as OpenMetrics."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(telemetry.registry), headers={"Content-Type": content_type})

    return router


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client closes the connection.

    Raises:
        ClientGoneError: it did.
    """
    task = asyncio.ensure_future(work)
    # The body has been read, so the next message can only be the end of the connection.
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError("the client closed the connection")
    finally:
        gone.cancel()
        task.cancel()


def _body(answer: Answer, predictor: Predictor, request_id: str) -> PredictResponse:
    prediction = answer.prediction
    verdict = predictor.policy.decide(prediction.probability, prediction.variance)
    return PredictResponse(
        label=prediction.label,
        probability=prediction.probability,
        variance=prediction.variance,
        decision=verdict.decision,
        reason=verdict.reason,
        probabilities=prediction.probabilities,
        entropy=prediction.entropy,
        mutual_information=prediction.mutual_information,
        samples=prediction.samples,
        truncated=answer.truncated,
        model=predictor.model_name,
        adapter=predictor.adapter_name,
        request_id=request_id,
    )


def _timings(answers: Sequence[Answer]) -> dict[str, float]:
    """Milliseconds of each stage; of a batch, those of its slowest input."""
    return {
        "tokenize": round(1e3 * max(one.tokenize_seconds for one in answers), 3),
        "queue": round(1e3 * max(one.queue_seconds for one in answers), 3),
        "inference": round(1e3 * max(one.inference_seconds for one in answers), 3),
    }


def _info(predictor: Predictor, settings: Settings) -> InfoResponse:
    return InfoResponse(
        version=package_version(),
        model=predictor.model_name,
        adapter=predictor.adapter_name,
        adapter_digest=predictor.adapter_digest,
        method=predictor.method,
        scope=str(predictor.scope),
        samples=predictor.samples,
        labels=list(predictor.labels),
        fields=list(predictor.fields),
        on_overflow=settings.on_overflow,
        policy=predictor.policy,
        limits=LimitsInfo(
            max_tokens=predictor.max_tokens,
            max_batch_inputs=settings.max_batch_inputs,
            max_body_bytes=settings.max_body_bytes,
            max_queue_requests=settings.max_queue_requests,
            max_queue_rows=settings.max_queue_rows,
            request_timeout_seconds=settings.request_timeout_seconds,
        ),
    )
