"""The paths."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request, Response
from prometheus_client.exposition import choose_encoder

from dalorra.client.tool import function_schema, tool_name
from service.adapters import Adapters
from service.api import problems
from service.api.answering import Answering, Reply, check_has_labels
from service.api.callers import caller_of
from service.api.schemas import (
    BatchRequest,
    BatchResponse,
    Health,
    InfoResponse,
    LimitsInfo,
    PredictOptions,
    PredictRequest,
    PredictResponse,
)
from service.errors import BatchTooLargeError, ClientGoneError
from service.lifecycle import Lifecycle
from service.policies import hand_made_policies
from service.settings import Settings
from service.telemetry import Telemetry, package_version

if TYPE_CHECKING:
    from dalorra.prompts import InputFields

T = TypeVar("T")

NOT_NOW = (problems.LOADING, problems.DRAINING, problems.UNAVAILABLE)
PREDICTION_ERRORS = problems.documented(
    problems.MALFORMED,
    problems.UNAUTHORIZED,
    problems.UNKNOWN_ADAPTER,
    problems.BODY_TOO_LARGE,
    problems.BATCH_TOO_LARGE,
    problems.INVALID,
    problems.QUEUE_FULL,
    problems.RATE_LIMITED,
    problems.INFERENCE_FAILED,
    problems.INTERNAL,
    *NOT_NOW,
    problems.DEADLINE,
)
# FastAPI documents a 422 of its own for every path with a parameter.
ABOUT_ADAPTER_ERRORS = problems.documented(
    problems.UNAUTHORIZED, problems.UNKNOWN_ADAPTER, problems.INVALID, *NOT_NOW
)

AdapterQuery = Annotated[
    str | None, Query(description="Which adapter, see /adapters; the default if left out.")
]


def prediction_routes(settings: Settings, answering: Answering) -> APIRouter:
    """What clients ask."""
    router = APIRouter(tags=["prediction"])

    @router.post("/predict", responses=PREDICTION_ERRORS, response_model_exclude_unset=True)
    async def predict(
        body: PredictRequest, request: Request, response: Response
    ) -> PredictResponse:
        """Answers one input with a label, its probability, its variance, and a decision."""
        [prediction] = await ask(answering, request, response, [body.input], body)
        return prediction

    @router.post("/predict/batch", responses=PREDICTION_ERRORS, response_model_exclude_unset=True)
    async def predict_batch(
        body: BatchRequest, request: Request, response: Response
    ) -> BatchResponse:
        """Answers several inputs, in their order; all of them or none."""
        check_batch(len(body.inputs), settings)
        predictions = await ask(answering, request, response, body.inputs, body, batch=True)
        return BatchResponse(predictions=predictions)

    return router


async def ask(
    answering: Answering,
    request: Request,
    response: Response,
    inputs: Sequence[InputFields],
    options: PredictOptions,
    *,
    batch: bool = False,
) -> list[PredictResponse]:
    """Answers the inputs of an HTTP request, as long as its client keeps the connection open.

    Each answer of a batch has an id of its own, the request's with the place after it, so that
    feedback can name it.

    Raises:
        ClientGoneError: the client closed the connection.
        InputError, ServiceError: see `Answering.predict`.
    """
    caller = caller_of(request)
    callers = [caller.at(place) for place in range(len(inputs))] if batch else [caller]
    bodies, reply = await unless_gone(request, answering.predict(inputs, callers, options))
    note(reply, request, response)
    return bodies


def note(reply: Reply, request: Request, response: Response) -> None:
    """Says what a reply took: in a header, and for the log."""
    response.headers["Server-Timing"] = reply.server_timing
    request.state.facts = reply.facts


def check_batch(inputs: int, settings: Settings) -> None:
    """Refuses a request with more inputs than one may have.

    Raises:
        BatchTooLargeError: there are more than `max_batch_inputs`.
    """
    if inputs > settings.max_batch_inputs:
        raise BatchTooLargeError(
            f"{inputs} inputs are more than the {settings.max_batch_inputs} of one "
            "request: send several"
        )


def operation_routes(settings: Settings, lifecycle: Lifecycle, telemetry: Telemetry) -> APIRouter:
    """What operators and their machines ask."""
    router = APIRouter(tags=["operation"])

    @router.get("/info", responses=ABOUT_ADAPTER_ERRORS)
    async def info(adapter: AdapterQuery = None) -> InfoResponse:
        """What is served: model, adapter, labels, policy, limits."""
        return _info(lifecycle.adapters, adapter, settings)

    @router.get("/tool.json", responses=ABOUT_ADAPTER_ERRORS)
    async def tool(adapter: AdapterQuery = None) -> dict[str, Any]:
        """The prediction as a tool for language models, in the schema of OpenAI's functions."""
        predictor = lifecycle.adapters.find(adapter)
        check_has_labels(predictor)
        own_name = predictor.card.adapter
        name = tool_name(own_name if adapter else None)
        return function_schema(own_name, predictor.labels, predictor.fields, name=name)

    @router.get("/health/live", responses=problems.documented(problems.UNAVAILABLE))
    async def live() -> Health:
        """200 unless only a restart can help."""
        if (reason := lifecycle.not_alive()) is not None:
            raise reason
        return Health(status="live")

    @router.get("/health/ready", responses=problems.documented(*NOT_NOW))
    async def ready() -> Health:
        """200 while requests are taken."""
        if (reason := lifecycle.not_ready()) is not None:
            raise reason
        return Health(status="ready")

    @router.get("/metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        """For Prometheus, in its text format or as OpenMetrics."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(await telemetry.exposed()), headers={"Content-Type": content_type})

    return router


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client closes the connection.

    Raises:
        ClientGoneError: the client closed the connection first.
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


def _info(adapters: Adapters, name: str | None, settings: Settings) -> InfoResponse:
    predictor = adapters.find(name)
    card = predictor.card
    return InfoResponse(
        version=package_version(),
        model=card.model,
        adapter=card.adapter,
        adapter_digest=card.digest,
        adapters=[one.card.adapter for one in adapters.served],
        method=card.method,
        scope=str(predictor.scope),
        samples=predictor.samples,
        labels=list(predictor.labels),
        fields=list(predictor.fields),
        on_overflow=settings.on_overflow,
        policy=predictor.policy,
        hand_made_policies=hand_made_policies(predictor),
        limits=LimitsInfo(
            max_tokens=predictor.max_tokens,
            max_batch_inputs=settings.max_batch_inputs,
            max_body_bytes=settings.max_body_bytes,
            max_queue_requests=settings.max_queue_requests,
            max_queue_rows=settings.max_queue_rows,
            request_timeout_seconds=settings.request_timeout_seconds,
        ),
    )
