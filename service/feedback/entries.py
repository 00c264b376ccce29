"""What waits in the clerk's inbox."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from dalorra.decision.policy import Policy
from service.feedback.live import Live
from service.feedback.records import Feedback, KeptAnswer, Source


@dataclass(slots=True, eq=False)
class Served:
    """A policy that is served, and what is known of it.

    Attributes:
        adapter: name of its adapter.
        labels: of that adapter.
        policy: the policy.
        source: the same for the store.
        number: of the source in the store; None until it is there. The clerk's.
        live: replaced, never changed, by the clerk; anyone may read it.
    """

    adapter: str
    labels: tuple[str, ...]
    policy: Policy
    source: Source
    number: int | None = None
    live: Live = field(default_factory=Live)


@dataclass(frozen=True, slots=True)
class Kept:
    """Answers to keep."""

    served: Served
    answers: Sequence[KeptAnswer]


@dataclass(frozen=True, slots=True)
class Loaded:
    """An adapter that is served from now on, in place of the one of its name."""

    served: Served


@dataclass(frozen=True, slots=True)
class Unloaded:
    """The name of an adapter that is served no more."""

    adapter: str


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """Done once everything before it is."""

    done: Future[None]


@dataclass(frozen=True, slots=True)
class Judgement:
    """The truth about an answer; done once it is written."""

    request_id: str
    label: str
    done: Future[Feedback]


Entry = Kept | Loaded | Unloaded | CaughtUp | Judgement
