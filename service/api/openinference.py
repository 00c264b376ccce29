"""The Open Inference Protocol, version 2, over HTTP: for callers that know KServe or Triton.

One BYTES tensor for each field of the adapter's template, one element for each input. The binary
tensor extension is not spoken.

Specification: https://github.com/kserve/open-inference-protocol, `specification/protocol`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from dalorra.errors import InputError
from service.api import problems
from service.api.answering import Answering
from service.api.routes import (
    ABOUT_ADAPTER_ERRORS,
    NOT_NOW,
    PREDICTION_ERRORS,
    ask,
    check_batch,
)
from service.api.schemas import PredictOptions, PredictResponse, RequestBody, ResponseBody
from service.lifecycle import Lifecycle
from service.settings import Settings
from service.telemetry import package_version

_OUTPUTS = {"label": "BYTES", "probability": "FP64", "variance": "FP64", "decision": "BYTES"}


class _RequestBody(RequestBody):
    # Extensions of the protocol may add fields; they are not needed here.
    model_config = ConfigDict(extra="ignore")


class InputTensor(_RequestBody):
    """One field of the template, for n inputs."""

    name: str = Field(examples=["sentence"])
    shape: list[int] = Field(examples=[[1]], description="[n] or [n, 1].")
    datatype: Literal["BYTES"]
    data: list[Any] = Field(examples=[["This movie was fantastic!"]], description="n texts.")


class RequestedOutput(_RequestBody):
    """One output that is wanted."""

    name: str


class InferRequest(_RequestBody):
    """n inputs, as one tensor for each field."""

    id: str | None = Field(None, description="Comes back in the answer.")
    inputs: list[InputTensor] = Field(min_length=1)
    outputs: list[RequestedOutput] | None = Field(None, description="All, if left out.")


class OutputTensor(ResponseBody):
    """One output, for n inputs."""

    name: str
    shape: list[int]
    datatype: str
    data: list[str | float]


class InferResponse(ResponseBody):
    """The answers, in the order of the inputs."""

    model_name: str
    model_version: str = Field(description="Digest of the adapter.")
    id: str | None = None
    outputs: list[OutputTensor]


class ServerMetadata(ResponseBody):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(ResponseBody):
    """What a tensor looks like; −1 is any number."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(ResponseBody):
    """The model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerLive(ResponseBody):
    """Whether the server lives."""

    live: bool


class ServerReady(ResponseBody):
    """Whether the server takes requests."""

    ready: bool


class ModelReady(ResponseBody):
    """Whether the model takes requests."""

    name: str
    ready: bool


def openinference_routes(
    settings: Settings, lifecycle: Lifecycle, answering: Answering
) -> APIRouter:
    """The facade; a model is an adapter, by its name."""
    router = APIRouter(prefix="/v2", tags=["open inference protocol"])
    _about_the_server(router, lifecycle)
    _about_the_model(router, lifecycle)

    @router.post(
        "/models/{model}/infer",
        responses=PREDICTION_ERRORS,
        response_model_exclude_none=True,
    )
    async def infer(
        model: str, body: InferRequest, request: Request, response: Response
    ) -> InferResponse:
        """Answers n inputs with a label, a probability, a variance and a decision each."""
        predictor = lifecycle.adapters.find(model)
        names = _output_names(body.outputs)
        inputs = _inputs(body.inputs, predictor.fields)
        check_batch(len(inputs), settings)
        options = PredictOptions(adapter=model)
        answers = await ask(answering, request, response, inputs, options, batch=True)
        return InferResponse(
            model_name=model,
            model_version=predictor.card.digest,
            id=body.id,
            outputs=[_output(name, answers) for name in names],
        )

    return router


def _about_the_server(router: APIRouter, lifecycle: Lifecycle) -> None:
    @router.get("", responses=problems.documented(problems.UNAUTHORIZED))
    async def server_metadata() -> ServerMetadata:
        """Name and version of the server."""
        return ServerMetadata(name="dalorra", version=package_version(), extensions=[])

    @router.get("/health/live", responses=problems.documented(problems.UNAVAILABLE))
    async def server_live() -> ServerLive:
        """200 unless only a restart can help."""
        if (reason := lifecycle.not_alive()) is not None:
            raise reason
        return ServerLive(live=True)

    @router.get("/health/ready", responses=problems.documented(*NOT_NOW))
    async def server_ready() -> ServerReady:
        """200 while requests are taken."""
        if (reason := lifecycle.not_ready()) is not None:
            raise reason
        return ServerReady(ready=True)


def _about_the_model(router: APIRouter, lifecycle: Lifecycle) -> None:
    @router.get("/models/{model}", responses=ABOUT_ADAPTER_ERRORS)
    async def model_metadata(model: str) -> ModelMetadata:
        """Inputs and outputs of the adapter."""
        predictor = lifecycle.adapters.find(model)
        inputs = dict.fromkeys(predictor.fields, "BYTES")
        return ModelMetadata(
            name=model,
            versions=[predictor.card.digest],
            platform="dalorra",
            inputs=[_any_number_of(name, kind) for name, kind in inputs.items()],
            outputs=[_any_number_of(name, kind) for name, kind in _OUTPUTS.items()],
        )

    @router.get("/models/{model}/ready", responses=ABOUT_ADAPTER_ERRORS)
    async def model_ready(model: str) -> ModelReady:
        """200 while requests are taken."""
        lifecycle.adapters.find(model)
        return ModelReady(name=model, ready=True)


def _any_number_of(name: str, datatype: str) -> TensorMetadata:
    return TensorMetadata(name=name, datatype=datatype, shape=[-1])


def _output_names(outputs: Sequence[RequestedOutput] | None) -> list[str]:
    if not outputs:
        return list(_OUTPUTS)
    for output in outputs:
        if output.name not in _OUTPUTS:
            raise InputError(f"outputs has an unknown name: send {', '.join(_OUTPUTS)}")
    return [output.name for output in outputs]


def _inputs(tensors: Sequence[InputTensor], fields: Sequence[str]) -> list[Mapping[str, str]]:
    """One object of fields for each element of the tensors."""
    by_name = {tensor.name: _texts(tensor) for tensor in tensors}
    if len(by_name) != len(tensors) or set(by_name) != set(fields):
        raise InputError(f"inputs must have one tensor for each of: {', '.join(fields)}")
    if len({len(texts) for texts in by_name.values()}) > 1:
        raise InputError("the tensors of inputs must have equally many elements")
    inputs = zip(*(by_name[field] for field in fields), strict=True)
    return [dict(zip(fields, texts, strict=True)) for texts in inputs]


def _texts(tensor: InputTensor) -> list[str]:
    """The elements of a tensor, whose data may be nested as its shape says or flat."""
    texts = [text for item in tensor.data for text in (item if isinstance(item, list) else [item])]
    if not texts:
        raise InputError("a tensor of inputs has no data: send at least one text, as JSON")
    if not all(isinstance(text, str) for text in texts):
        raise InputError("the data of a BYTES tensor must be strings")
    if len(tensor.shape) not in (1, 2) or tensor.shape[0] != math.prod(tensor.shape):
        raise InputError("the shape of a tensor must be [n] or [n, 1]")
    if tensor.shape[0] != len(texts):
        raise InputError(
            f"a tensor of shape {tensor.shape} has {len(texts)} elements: make them agree"
        )
    return texts


def _output(name: str, answers: Sequence[PredictResponse]) -> OutputTensor:
    data = [getattr(answer, name) for answer in answers]
    return OutputTensor(name=name, shape=[len(data)], datatype=_OUTPUTS[name], data=data)
