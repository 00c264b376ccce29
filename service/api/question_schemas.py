"""What the protocols of typed questions have in common in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from dalorra.decision.policy import Decision
from service.api import problems
from service.api.routes import NOT_NOW
from service.api.schemas import ResponseBody

NOTHING_GENERATED = 0
"""Output tokens of every answer: all of them are read off, none is written."""

QUESTION_ERRORS = (
    problems.MALFORMED,
    problems.UNAUTHORIZED,
    problems.UNKNOWN_ADAPTER,
    problems.BODY_TOO_LARGE,
    problems.TOO_LONG,
    problems.INVALID,
    problems.QUEUE_FULL,
    problems.RATE_LIMITED,
    problems.INFERENCE_FAILED,
    problems.INTERNAL,
    *NOT_NOW,
    problems.DEADLINE,
)


class Promise(ResponseBody):
    """What a policy promises of the answers that it accepts."""

    target_error: float = Field(description="At most this share of them is wrong.")
    confidence: float = Field(description="Probability, over the calibration data, that it is so.")


class OwnFields(ResponseBody):
    """What an answer of this server says beyond its protocol."""

    x_decision: Decision = Field(
        description="accept: believe it. escalate: the model does not know. "
        "clarify: the state leaves the answer open."
    )
    x_reason: str = Field(description="The decision, explained in one sentence.")
    x_variance: float = Field(
        ge=0, description="Variance over the samples of the most probable option's probability."
    )
    x_standard_error: float | None = Field(
        description="Of that probability, for so few samples were averaged; null for one sample."
    )
    x_novelty: float | None = Field(
        description="p-value among inputs like the training data: small is novel. null when the "
        "adapter cannot tell."
    )
    x_promise: Promise | None = Field(
        description="What is promised of accepted answers; null where this is none of them, or "
        "nothing is promised."
    )
    x_samples: int = Field(ge=1, description="Posterior samples that were averaged.")
    x_sample_probabilities: list[float] | None = Field(
        None,
        description="The most probable option's probability in each sample, of a noul that of yes; "
        "only where x_return_samples asks for it.",
    )
    x_adapter: str = Field(description="The adapter that answered.")
    x_request_id: str = Field(description="Names this answer, for /feedback.")


def body_of(kind: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says about a body that the web framework does not read itself."""
    schema = kind.model_json_schema()
    content = {"application/json": {"schema": _inlined(schema, schema.pop("$defs"))}}
    return {"requestBody": {"content": content, "required": True}}


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema with its definitions where they are used."""
    if isinstance(schema, list):
        return [_inlined(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {
        name: _inlined(one, definitions)
        for name, one in schema.items()
        if name != "discriminator"  # leads to the definitions, too
    }
