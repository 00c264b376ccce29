"""What the server answers. Fields that a newer server adds are kept, and dumped with the rest."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Input = str | Mapping[str, str]
"""Text, for a template with one field; else the template's fields by name."""

State = str | Mapping[str, Any] | Sequence[Any]
"""What typed questions are about: text, or anything that JSON can say."""

Question = Mapping[str, Any]
"""`{"type": "noul", "instructions": …}`, or `choice` or `score` with their `criteria`, too."""

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


class Promise(_ResponseBody):
    """What a policy promises of the answers that it accepts.

    Attributes:
        target_error: at most this share of them is wrong.
        confidence: probability, over the calibration data, that it is so.
    """

    target_error: float
    confidence: float


_OF_THE_PROTOCOL = {"type", "noul", "choice", "score", "legend", "probabilities", "confidence"}


class _TypedAnswer(_ResponseBody):
    """What every answer to a typed question says.

    Attributes:
        decision: what to do with the answer.
        reason: the decision, explained in one sentence.
        variance: over the samples, of the most probable option's probability.
        standard_error: of that probability; None for one sample.
        novelty: see `Prediction`.
        promise: what is promised of accepted answers; None where this is none of them, or nothing
            is promised.
        samples: posterior samples that were averaged.
        sample_probabilities: the most probable option's probability in each sample, of a noul that
            of yes; where it was asked for.
        adapter: who answered.
        request_id: names this answer, for `Client.feedback`; its label is `true` or `false` of a
            noul, an option of a choice, the number of a level of a score.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        defer_build=True,
        validate_by_name=True,
        alias_generator=lambda name: name if name in _OF_THE_PROTOCOL else f"x_{name}",
    )

    decision: Decision
    reason: str
    variance: float
    standard_error: float | None
    novelty: float | None
    promise: Promise | None
    samples: int
    sample_probabilities: tuple[float, ...] | None = None
    adapter: str
    request_id: str


class NoulAnswer(_TypedAnswer):
    """The answer to whether something is so: `noul` is the probability of yes."""

    type: Literal["noul"]
    noul: float


class ChoiceAnswer(_TypedAnswer):
    """The most probable option, and how probable each is.

    `confidence` is how concentrated that is, from 0 to 1; whether to believe it says `decision`.
    """

    type: Literal["choice"]
    choice: str
    probabilities: dict[str, float]
    confidence: float


class ScoreAnswer(_TypedAnswer):
    """The expected level, what each level means, and how probable it is.

    `confidence` is how concentrated that is, from 0 to 1; whether to believe it says `decision`.
    """

    type: Literal["score"]
    score: float
    legend: dict[int, Any]
    probabilities: dict[int, float]
    confidence: float


TypedAnswer = Annotated[NoulAnswer | ChoiceAnswer | ScoreAnswer, Field(discriminator="type")]


class Usage(_ResponseBody):
    """Tokens: those of the state count once, and none is generated."""

    input_tokens: int
    output_tokens: int


class Answers(_ResponseBody):
    """The answers to typed questions, by the name of the question.

    Attributes:
        model: the adapter that answered.
        answers: one for each question.
        usage: tokens.
    """

    model: str
    answers: dict[str, TypedAnswer]
    usage: Usage

    def __getitem__(self, name: str) -> NoulAnswer | ChoiceAnswer | ScoreAnswer:
        """The answer to one question."""
        return self.answers[name]


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
        hand_made_policies: policies that accept and promise nothing, see `Adapter`.
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
    hand_made_policies: int = 0
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
        policy_digest: of its policy as it was calibrated; None where none was, or is not held to.
        hand_made_policies: its policies, those of single questions included, that accept and
            promise nothing because they are not as calibration wrote them.
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
    policy_digest: str | None = None
    hand_made_policies: int = 0


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
