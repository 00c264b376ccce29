"""What the engine needs from others, and the limits it keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dalorra.adapter.manifest import Card
    from dalorra.adapter.registered import RegisteredQuestion
    from dalorra.decision.novelty import Novelty
    from dalorra.decision.policy import Policy
    from dalorra.decision.predictive import Prediction
    from dalorra.forward.batches import Batching, State
    from dalorra.prompts import InputFields, Prompt
    from dalorra.questions import Asked

    Input = InputFields | Asked


class Predictor(Protocol):
    """The part of `dalorra.predictor.Predictor` that a server uses."""

    card: Card
    policy: Policy
    question_policies: Mapping[str, Policy]
    novelty: Novelty | None
    batching: Batching
    registered: tuple[RegisteredQuestion, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names; none where they come with the questions."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of the adapter's template."""

    @property
    def samples(self) -> int:
        """M."""

    @property
    def scope(self) -> str:
        """Rows the adapter acts on."""

    @property
    def nbytes(self) -> int:
        """Memory that the adapter takes beside the base model."""

    @property
    def max_tokens(self) -> int:
        """Limit on the tokens of one input."""

    def policy_for(self, value: Input, /) -> Policy:
        """Decides on the answer to an input."""

    def encode(self, value: Input, /) -> Prompt:
        """Tokenises one input; called beside `predict`, on another thread."""

    def packed_rows(self, prompt: Prompt, /) -> int:
        """Rows that this prompt adds to a forward."""

    def state_of(self, prompt: Prompt, /) -> State:
        """What a question is about, and which of its rows others about the same share."""

    def cached_tokens(self, prompt: Prompt, /) -> int:
        """Tokens of a question's state that need not be read again; beside no `predict`."""

    def predict(self, prompts: Sequence[Prompt], /) -> list[Prediction]:
        """Answers one batch, order kept; one caller at a time."""

    def examples(self) -> list[Prompt]:
        """A few short prompts that mean nothing and have nothing in common; to measure with."""

    def warm_up(self) -> Iterator[Callable[[], object]]:
        """Steps to take once before the first answer; batches may run between them."""


class Observer(Protocol):
    """Hears what happens inside the engine, for metrics. Called on the event loop; must not raise.

    All durations are in seconds.
    """

    def tokenized(self, tokens: int, seconds: float) -> None:
        """One input became a prompt of `tokens` tokens."""

    def coalesced(self) -> None:
        """An input joined an identical one that was already on its way."""

    def dequeued(self, waited: float) -> None:
        """An entry left the queue for a batch, `waited` after it was tokenised."""

    def batch_finished(self, requests: int, rows: int, seconds: float) -> None:
        """A batch of `requests` entries and `rows` packed rows left the model thread."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine holds at most.

    Attributes:
        queue_requests: distinct inputs that wait.
        queue_rows: packed rows that wait.
        batch_seconds: what a batch may take where one of fewer rows takes less.
        stall_seconds: a batch that runs for longer counts as hung.
    """

    queue_requests: int
    queue_rows: int
    batch_seconds: float
    stall_seconds: float
