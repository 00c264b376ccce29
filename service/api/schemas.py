"""Bodies of requests and answers. The examples are checked against the schemas by the tests."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from dalorra.decision.policy import Decision, Policy


def _check_unicode(value: Any) -> None:
    """Looks at every text in a value of JSON, which can hold half of a surrogate pair.

    Raises:
        ValueError: there is one that is not Unicode.
    """
    unseen = [value]  # no recursion: a client can nest deeply
    while unseen:
        match unseen.pop():
            case str() as text:
                try:
                    text.encode()
                except UnicodeEncodeError:
                    raise ValueError("is not Unicode: it holds half of a surrogate pair") from None
            case dict() as members:
                unseen += (*members, *members.values())
            case list() as items:
                unseen += items


InputValue = Annotated[
    str | dict[str, str],
    Field(
        description="Text, for a template with one field; else an object of the template's fields."
    ),
]

_PREDICTION: dict[str, JsonValue] = {
    "label": "positive",
    "probability": 0.983,
    "variance": 0.0004,
    "decision": "accept",
    "reason": "probability 0.983 is at least 0.9 and variance 0.0004 is at most 0.01",
    "probabilities": {"negative": 0.017, "positive": 0.983},
    "entropy": 0.086,
    "mutual_information": 0.002,
    "standard_error": 0.0067,
    "novelty": 0.62,
    "samples": 10,
    "truncated": False,
    "model": "smollm2-135m-instruct",
    "adapter": "sentiment",
    "request_id": "5f2b6c1e0d9a4b7f8c3e2a1d0b9c8f7e",
}


class BodyPart(BaseModel):
    """A part of what a client may send: nothing unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RequestBody(BodyPart):
    """What a client may send: nothing unknown, and all of it Unicode."""

    @field_validator("*", mode="before", check_fields=False)
    @classmethod
    def _is_unicode(cls, value: Any) -> Any:
        _check_unicode(value)
        return value


class ResponseBody(BaseModel):
    """What a client is sent. Not-a-number raises: JSON does not have it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PredictOptions(RequestBody):
    """What can be asked for beside an answer."""

    adapter: str | None = Field(
        None, description="Which adapter answers, see /adapters; the default if left out."
    )
    return_samples: bool = Field(
        False, description="Whether to add sample_probabilities to the answer."
    )
    target_error: float | None = Field(
        None,
        description="Error rate among accepted answers, when it should be lower than the one the "
        "policy was calibrated for: the thresholds are then those calibrated for it.",
        examples=[0.02],
    )


class PredictRequest(PredictOptions):
    """One input."""

    input: InputValue = Field(examples=["This movie was fantastic!"])


class BatchRequest(PredictOptions):
    """Several inputs, answered together or not at all."""

    inputs: list[InputValue] = Field(
        min_length=1, examples=[["This movie was fantastic!", "The plot was hard to follow."]]
    )


class PredictResponse(ResponseBody):
    """One answer: what, how sure, and what to do with it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_PREDICTION]})

    label: str = Field(description="The most probable label.")
    probability: float = Field(ge=0, le=1, description="Its mean probability over the samples.")
    variance: float = Field(ge=0, description="Variance of its probability over the samples.")
    decision: Decision = Field(
        description="accept: believe it. escalate: the model does not know. "
        "clarify: the input leaves the answer open."
    )
    reason: str = Field(description="The decision, explained in one sentence.")
    probabilities: dict[str, float] = Field(description="Mean probability of each label.")
    entropy: float = Field(description="Total uncertainty, in nats.")
    mutual_information: float = Field(description="Its epistemic part, in nats.")
    standard_error: float | None = Field(
        None,
        ge=0,
        description="How far the probability may be off because only so many samples were "
        "averaged: one standard error. null for one sample.",
    )
    novelty: float | None = Field(
        None,
        ge=0,
        le=1,
        description="p-value of the input among those like the training data: small is novel. "
        "null when the adapter cannot tell.",
    )
    samples: int = Field(ge=1, description="Posterior samples that were averaged.")
    truncated: bool = Field(description="Whether the input was cut to fit.")
    model: str = Field(description="The base model.")
    adapter: str = Field(description="The adapter.")
    request_id: str = Field(
        description="Names this answer: the id in the header X-Request-Id and in the log; of "
        "several answers, with -0, -1, … after it."
    )
    sample_probabilities: list[float] | None = Field(
        None, description="The label's probability in each sample; only where asked for."
    )


class BatchResponse(ResponseBody):
    """The answers, in the order of the inputs."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"predictions": [_PREDICTION]}]})

    predictions: list[PredictResponse]


class LimitsInfo(ResponseBody):
    """What the server takes at most."""

    max_tokens: int = Field(description="Tokens of one input, template and cue included.")
    max_batch_inputs: int
    max_body_bytes: int
    max_queue_requests: int
    max_queue_rows: int
    request_timeout_seconds: float


class InfoResponse(ResponseBody):
    """What is served."""

    version: str = Field(description="Of the software.")
    model: str
    adapter: str
    adapter_digest: str = Field(description="Changes with anything that changes an answer.")
    adapters: list[str] = Field(description="Every adapter that can be asked, the default first.")
    method: str = Field(description="How the adapter is stochastic.")
    scope: str = Field(description="Rows that the adapter acts on.")
    samples: int = Field(description="Posterior samples of the whole bank.")
    labels: list[str]
    fields: list[str] = Field(description="Fields of the template, for inputs that are objects.")
    on_overflow: str = Field(description="What happens to an over-long input.")
    policy: Policy = Field(description="The thresholds, where they come from, what they promise.")
    hand_made_policies: int = Field(description="See /adapters.")
    limits: LimitsInfo


class AdapterInfo(ResponseBody):
    """One adapter that can be asked."""

    name: str = Field(description="What requests call it.", examples=["topic"])
    digest: str = Field(description="Changes with anything that changes an answer.")
    method: str = Field(description="How the adapter is stochastic.")
    scope: str = Field(description="Rows that the adapter acts on.")
    samples: int
    labels: list[str]
    fields: list[str] = Field(description="Fields of the template, for inputs that are objects.")
    max_tokens: int = Field(description="Tokens of one input, template and cue included.")
    bytes: int = Field(description="Memory that it takes beside the base model.")
    policy_digest: str | None = Field(
        description="Of its policy as it was calibrated; null where none was, or is not held to."
    )
    hand_made_policies: int = Field(
        description="Policies, those of single questions included, that accept and promise nothing "
        "because they are not as calibration wrote them."
    )


class PolicyChange(ResponseBody):
    """One field of a policy."""

    before: JsonValue
    after: JsonValue


class ReplacedInfo(ResponseBody):
    """The adapter that had the name, and how its policies differ from those that are served now."""

    digest: str = Field(description="Of the adapter.")
    policy_changes: dict[str, PolicyChange] = Field(description="By field.")
    question_policy_changes: dict[str, dict[str, PolicyChange]] = Field(
        description="By the digest of each question, then by field."
    )


class LoadedResponse(AdapterInfo):
    """An adapter that is served from now on."""

    replaced: ReplacedInfo | None = Field(description="null where the name was free.")


class AdaptersResponse(ResponseBody):
    """Every adapter that can be asked."""

    default: str = Field(description="Answers requests that name none.", examples=["sentiment"])
    adapters: list[AdapterInfo] = Field(description="The default first.")


class LoadRequest(RequestBody):
    """Where an adapter is."""

    path: Path = Field(
        description="Its directory on the server, below one of adapter_roots.",
        examples=["topic-2"],
    )


class Health(ResponseBody):
    """All is well; anything else comes as an error."""

    status: str = Field(examples=["ready"])


class ErrorBody(ResponseBody):
    """Every error, whatever its status."""

    error: str = Field(description="One sentence: what is wrong and what would be right.")
    error_type: str = Field(description="A stable slug to compare with.")
    request_id: str
