"""What the server answers. Fields that a newer server adds are kept, and dumped with the rest."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

Input = str | Mapping[str, str]
"""Text, for a template with one field; else the template's fields by name."""

Decision = Literal["accept", "escalate", "clarify"]
"""accept: believe it. escalate: the model does not know. clarify: the input leaves it open."""


class _ResponseBody(BaseModel):
    # Built on first use, so that importing the client costs an agent's start as little as can be.
    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)


class Prediction(_ResponseBody):
    """One answer: what, how sure, and what to do with it.

    Attributes:
        label: the most probable label.
        probability: its mean probability over the samples.
        variance: variance of that probability over the samples, at most 0.25.
        decision: what to do with the answer.
        reason: the decision, explained in one sentence.
        probabilities: mean probability of each label; they sum to 1.
        entropy: total uncertainty, in nats.
        mutual_information: its epistemic part, in nats.
        standard_error: how far the probability may be off because only so many samples were
            averaged: one standard error; None for one sample.
        novelty: p-value of the input among those like the training data, small is novel; None
            when the adapter cannot tell.
        samples: posterior samples that were averaged.
        truncated: whether the input was cut to fit.
        model: the base model.
        adapter: the adapter.
        request_id: names this answer, for `Client.feedback`: the id in the server's log, and for
            each of a batch `-0`, `-1`, … after it.
        sample_probabilities: the label's probability in each sample, where it was asked for.
    """

    label: str
    probability: float
    variance: float
    decision: Decision
    reason: str
    probabilities: dict[str, float]
    entropy: float
    mutual_information: float
    standard_error: float | None = None
    novelty: float | None = None
    samples: int
    truncated: bool
    model: str
    adapter: str
    request_id: str
    sample_probabilities: tuple[float, ...] | None = None


class Predictions(_ResponseBody):
    """The answers to a batch, in the order of its inputs."""

    predictions: list[Prediction]


class Feedback(_ResponseBody):
    """What the server keeps as the truth about an answer.

    Attributes:
        request_id: of the answer.
        label: the true label.
        predicted: the label that was answered.
        decision: what was said to do with it.
        correct: whether the answer was right.
    """

    request_id: str
    label: str
    predicted: str
    decision: Decision
    correct: bool


class Policy(_ResponseBody):
    """The thresholds, where they come from and what they promise.

    Attributes:
        min_probability: τ_p, the least probability that is accepted; above 1 nothing is.
        max_variance: τ_v, the largest variance that is accepted.
        source: what the thresholds were picked on.
        target_error: the error rate among accepted answers that they were picked for.
        confidence: probability that the target is kept; None for a policy that promises nothing.
    """

    min_probability: float
    max_variance: float
    source: str
    target_error: float | None = None
    confidence: float | None = None


class Limits(_ResponseBody):
    """What the server takes at most."""

    max_tokens: int
    max_batch_inputs: int
    max_body_bytes: int
    max_queue_requests: int
    max_queue_rows: int
    request_timeout_seconds: float


class Info(_ResponseBody):
    """What is served.

    Attributes:
        version: of the server's software.
        model: the base model.
        adapter: the adapter.
        adapter_digest: changes with anything that changes an answer.
        adapters: names of all adapters that can be asked, the default first.
        method: how the adapter is stochastic.
        scope: rows that the adapter acts on.
        samples: M.
        labels: names of the labels.
        fields: the template's fields, for inputs that are objects.
        on_overflow: what happens to an over-long input, `truncate` or `reject`.
        policy: when an answer is accepted.
        limits: what the server takes at most.
    """

    version: str
    model: str
    adapter: str
    adapter_digest: str
    adapters: tuple[str, ...] = ()
    method: str
    scope: str
    samples: int
    labels: tuple[str, ...]
    fields: tuple[str, ...]
    on_overflow: str
    policy: Policy
    limits: Limits


class Adapter(_ResponseBody):
    """One adapter that can be asked.

    Attributes:
        name: what requests call it.
        digest: changes with anything that changes an answer.
        method: how it is stochastic.
        scope: rows that it acts on.
        samples: M.
        labels: names of the labels.
        fields: the template's fields, for inputs that are objects.
        max_tokens: of one input, template and cue included.
        bytes: memory that it takes beside the base model.
    """

    name: str
    digest: str
    method: str
    scope: str
    samples: int
    labels: tuple[str, ...]
    fields: tuple[str, ...]
    max_tokens: int
    bytes: int


class Adapters(_ResponseBody):
    """Every adapter that can be asked, the default first."""

    default: str
    adapters: list[Adapter]


class Health(_ResponseBody):
    """Whether the server takes requests now, and if not, why.

    Attributes:
        ready: whether it takes them.
        error_type: `loading`, `draining` or `unavailable` when it does not.
        reason: the same in a sentence.
    """

    ready: bool
    error_type: str | None = None
    reason: str | None = None
