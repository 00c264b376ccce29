"""What waits in the clerk's inbox."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from dalorra.decision.policy import Policy
from service.feedback.live import LiveFigures
from service.feedback.records import Feedback, KeptAnswer, Source


@dataclass(slots=True, eq=False)
class ServedPolicy:
    """A policy that is served, and what is known of it.

    Attributes:
        adapter: name of its adapter.
        labels: of that adapter; none where they come with the questions.
        policy: the policy.
        source: the same for the store.
        number: of the source in the store, set by the clerk; None until it is there.
        live: replaced, never changed, by the clerk; anyone may read it.
    """

    adapter: str
    labels: tuple[str, ...]
    policy: Policy
    source: Source
    number: int | None = None
    live: LiveFigures = field(default_factory=LiveFigures)


@dataclass(frozen=True, slots=True)
class NewAnswers:
    """What was answered under one policy."""

    served: ServedPolicy
    answers: Sequence[KeptAnswer]


@dataclass(frozen=True, slots=True)
class NewPolicy:
    """A policy that is served from now on, in place of the one of its adapter's name."""

    served: ServedPolicy


@dataclass(frozen=True, slots=True)
class GoneAdapter:
    """The name of an adapter that is served no more."""

    adapter: str


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Done once all messages before it are dealt with and everything is added up."""

    done: Future[None]


@dataclass(frozen=True, slots=True)
class Judgement:
    """The truth about an answer, as its client calls the label; done once it is written.

    Of an answer to `owner`, or else, where it may be `anyones`, to another one.
    """

    request_id: str
    label: str
    owner: str
    anyones: bool
    done: Future[Feedback]


Message = NewAnswers | NewPolicy | GoneAdapter | CatchUp | Judgement
