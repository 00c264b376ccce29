"""One distinct input on its way through the engine, and everyone who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from service.engine.interfaces import Predictor
from service.engine.lengths import Size

if TYPE_CHECKING:
    from dalorra.decision.predictive import Prediction
    from dalorra.forward.batches import State
    from dalorra.prompts import Prompt
    from service.engine.interfaces import Input


@dataclass(frozen=True, slots=True)
class Answer:
    """A prediction and what it took; the times are worked out here once, for headers and logs.

    Attributes:
        prediction: the predictive moments.
        tokens: T of its prompt.
        shared_tokens: those of the state, which other questions about it begin with, too.
        cached_tokens: those of them that the prefix cache knew, see `Sent`.
        truncated: whether free text was cut to fit.
        tokenize_seconds: spent in the tokeniser.
        queued_at: when it was tokenised, in loop time.
        queue_seconds: from tokenised to the start of its batch.
        inference_seconds: of its batch.
        batch_requests: entries that shared its batch.
    """

    prediction: Prediction
    tokens: int
    shared_tokens: int
    cached_tokens: int
    truncated: bool
    tokenize_seconds: float
    queued_at: float
    queue_seconds: float
    inference_seconds: float
    batch_requests: int


_MARGIN = 0.1
"""Share of an entry's time that plans leave unused: the model may be slower than it just was."""


class Stage(Enum):
    """Where an entry is; it holds a place in the queue during the first two."""

    TOKENIZING = auto()
    QUEUED = auto()
    RUNNING = auto()
    DONE = auto()


@dataclass(slots=True, eq=False)
class Entry:
    """One distinct input.

    Attributes:
        key: equal for equal inputs of one predictor.
        predictor: answers it.
        value: the input.
        rows: rows it holds in the queue: an estimate first, exact once tokenised. Questions that
            were asked together about one state hold equal parts of its rows.
        size: what that estimate was made of.
        client: whose share of the queue it counts against; None where nobody has one.
        stage: where it is.
        deadline: the latest deadline of those who wait, in loop time.
        prompt: the tokenised input.
        own_rows: its rows without those of its state.
        state: what it is a question about; None where it is none.
        tokenize_seconds: spent in the tokeniser.
        queued_at, started_at: loop time.
        turn: in the queue; the lowest comes first.
        waiters: one future for each caller; an entry without any is wanted no more.
    """

    key: Hashable
    predictor: Predictor
    value: Input
    rows: int
    size: Size
    client: Hashable | None = None
    stage: Stage = Stage.TOKENIZING
    deadline: float = 0.0
    prompt: Prompt | None = None
    own_rows: int = 0
    state: State | None = None
    tokenize_seconds: float = 0.0
    queued_at: float = 0.0
    started_at: float = 0.0
    turn: int = 0
    waiters: set[asyncio.Future[Answer]] = field(default_factory=set)

    @property
    def alone_rows(self) -> int:
        """Rows of a forward that it has for itself."""
        return self.own_rows + (self.state.rows if self.state else 0)

    @property
    def due(self) -> float:
        """When it is to be answered by plans, which can be wrong; before its deadline."""
        return (1.0 - _MARGIN) * self.deadline + _MARGIN * self.queued_at

    def join(self, deadline: float) -> asyncio.Future[Answer]:
        """Adds a caller, who gives up at `deadline`."""
        waiter: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.waiters.add(waiter)
        self.deadline = max(self.deadline, deadline)
        return waiter

    def leave(self, waiter: asyncio.Future[Answer]) -> None:
        """Removes a caller, answered or not."""
        self.waiters.discard(waiter)
        if not waiter.cancel() and not waiter.cancelled():
            waiter.exception()  # marks it as retrieved, so that asyncio does not warn

    def wanted(self, now: float) -> bool:
        """Whether anyone still waits for it."""
        return bool(self.waiters) and now < self.deadline

    def resolve(self, answer: Answer) -> None:
        """Answers everyone who still waits."""
        self.stage = Stage.DONE
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(answer)

    def fail(self, error: Exception) -> None:
        """Fails everyone who still waits."""
        self.stage = Stage.DONE
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(error)
