"""What the server talks to: keeps answers, takes the truth about them, watches the promise.

Everything here is called on the event loop and never waits for a disk: it puts things into a
bounded inbox, or reads what the clerk has worked out. When the inbox is full an answer is not kept
(and counted), and feedback is told to come back.
"""

from __future__ import annotations

import asyncio
import json
import math
import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from dalorra.decision.policy import Decision, Verdict
from service.errors import FeedbackOffError, QueueFullError
from service.feedback.clerk import Clerk
from service.feedback.clock import SteadyClock
from service.feedback.messages import (
    CatchUp,
    GoneAdapter,
    Judgement,
    Message,
    NewAnswers,
    NewPolicy,
    ServedPolicy,
)
from service.feedback.places import open_store
from service.feedback.records import Feedback, KeptAnswer, Source, readable
from service.feedback.store import LOCK_SECONDS

if TYPE_CHECKING:
    from dalorra.decision.predictive import Prediction
    from service.engine import Predictor
    from service.engine.interfaces import Input

INBOX_SIZE = 10_000
"""Requests whose answers or judgements may wait to be written."""

STOP_SECONDS = LOCK_SECONDS + 5.0
"""For what waits to be written when the server ends: longer than another process may lock the
store."""

_HASTY_STOP_SECONDS = 1.0
_log = structlog.get_logger("dalorra.feedback")


@dataclass(frozen=True, slots=True)
class FeedbackOptions:
    """What is kept, and what follows from it.

    Attributes:
        place: where, see `open_store`.
        retention_seconds: answers are deleted after it.
        max_answers: most that are kept.
        inputs: whether the inputs are kept, too.
        alpha: probability of calling a kept promise broken, over all time.
        strict: whether nothing is accepted any more once the promise is broken.
    """

    place: Path | str = field(repr=False)  # may hold a password
    retention_seconds: float
    max_answers: int
    inputs: bool
    alpha: float
    strict: bool


@dataclass(frozen=True, slots=True)
class Told:
    """An answer as its client got it.

    Attributes:
        request_id: names the answer.
        value: the input.
        prediction: the answer.
        decision: what the client was told to do with it.
        called: what the client calls each label, where that is not its name.
        owner: whose it is, see `service.keys.owner_name`.
    """

    request_id: str
    value: Input
    prediction: Prediction
    decision: Decision
    called: Mapping[str, str] | None = None
    owner: str = ""


class Ledger:
    """One for each server. Where nothing is kept, feedback raises `FeedbackOffError`.

    Args:
        options: what is kept; None: nothing.

    Raises:
        ConfigError: the store cannot be opened.
    """

    def __init__(self, options: FeedbackOptions | None) -> None:
        self._options = options
        self._policies: dict[str, ServedPolicy] = {}  # by name of the adapter
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._clerk: Clerk | None = None
        self._thread: threading.Thread | None = None
        self._refused = 0
        self._handed_over = 0  # answers, to the clerk
        if options is not None:
            store = open_store(options.place)
            self._clock = SteadyClock(store.time)
            self._clerk = Clerk(
                store,
                self._inbox,
                self._clock,
                retention_seconds=options.retention_seconds,
                max_answers=options.max_answers,
                alpha=options.alpha,
            )

    @property
    def alpha(self) -> float:
        """Probability of calling a kept promise broken; NaN where nothing is watched."""
        return self._options.alpha if self._options else math.nan

    @property
    def policies(self) -> Sequence[ServedPolicy]:
        """The policies that are served, and how they stand."""
        return tuple(self._policies.values())

    @property
    def judged(self) -> Mapping[tuple[str, str, bool], int]:
        """Feedback that came, by adapter, decision, and whether the answer was right."""
        return self._clerk.judged if self._clerk else {}

    @property
    def lost(self) -> int:
        """Answers that should have been kept, and were not."""
        return self._refused + (self._clerk.lost if self._clerk else 0)

    def start(self) -> None:
        """Starts to write."""
        if self._clerk is not None:
            # A daemon: a disk that hangs must not keep the process from ending.
            self._thread = threading.Thread(target=self._clerk.run, name="feedback", daemon=True)
            self._thread.start()

    async def stop(self, *, at_once: bool = False) -> None:
        """Writes what waits, and ends; what could not be written is counted and logged.

        Args:
            at_once: gives up soon if the store cannot be written.
        """
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._inbox.put(None)
        await asyncio.to_thread(thread.join, _HASTY_STOP_SECONDS if at_once else STOP_SECONDS)
        if thread.is_alive() and self._clerk is not None:
            self._refused += self._handed_over - self._clerk.done
        if self.lost:
            _log.error("answers_not_kept", answers=self.lost)

    def adapter_loaded(self, predictor: Predictor) -> None:
        """Feedback on its answers is taken from now on, and its promise watched."""
        served = self._policies[predictor.card.adapter] = _describe(predictor)
        if self._thread is not None:
            self._inbox.put(NewPolicy(served))

    def adapter_unloaded(self, name: str) -> None:
        """Feedback on its answers is refused from now on."""
        del self._policies[name]
        if self._thread is not None:
            self._inbox.put(GoneAdapter(name))

    async def caught_up(self) -> None:
        """Returns once everything before is written, and added up for every adapter.

        Raises:
            FeedbackStoreError: the store could not be read.
        """
        if self._thread is not None:
            done: Future[None] = Future()
            self._inbox.put(CatchUp(done))
            await asyncio.wrap_future(done)

    def keep(self, predictor: Predictor, told: Sequence[Told]) -> None:
        """Keeps what a predictor answered, for feedback to come."""
        if self._options is None:
            return
        if self._full or self._thread is None:
            self._refused += len(told)
            return
        now, decide = self._clock.now(), predictor.policy.decide
        answers = [
            KeptAnswer(
                request_id=one.request_id,
                answered_at=now,
                label=one.prediction.label,
                probability=one.prediction.probability,
                variance=one.prediction.variance,
                novelty=one.prediction.novelty,
                cut_at=one.prediction.cut_at,
                samples=one.prediction.samples,
                decision=str(one.decision),
                accepted=decide(one.prediction).decision is Decision.ACCEPT,
                input=json.dumps(readable(one.value)) if self._options.inputs else None,
                called=None if one.called is None else json.dumps(dict(one.called)),
                owner=one.owner,
            )
            for one in told
        ]
        # Where another has taken the adapter's name since, what answered is kept with the answers.
        served = self._current(predictor) or _describe(predictor)
        self._inbox.put(NewAnswers(served, answers))
        self._handed_over += len(answers)

    async def judge(
        self, request_id: str, label: str, owner: str = "", *, anyones: bool = False
    ) -> Feedback:
        """Takes the truth about an earlier answer.

        Args:
            request_id: of the answer.
            label: what would have been right.
            owner: whose answer it is.
            anyones: whether it may be another owner's, if this one has none of that id.

        Raises:
            FeedbackOffError: nothing is kept.
            UnknownAnswerError, UnknownLabelError, AlreadyJudgedError, OtherAdapterError: it cannot
                be the truth about an answer that is kept.
            QueueFullError, FeedbackStoreError: it cannot be written now.
        """
        if self._thread is None:
            raise FeedbackOffError(
                "feedback is off: the server keeps answers once feedback_store is set"
            )
        if self._full:
            raise QueueFullError(
                "too much feedback waits to be written: try again in 1 s", retry_after=1
            )
        done: Future[Feedback] = Future()
        self._inbox.put(Judgement(request_id, label, owner, anyones, done))
        return await asyncio.wrap_future(done)

    def guard(self, predictor: Predictor, verdict: Verdict) -> Verdict:
        """The verdict, or an escalation where the promise behind an `accept` is broken."""
        if self._options is None or not self._options.strict:
            return verdict
        served = self._current(predictor)
        if verdict.decision is not Decision.ACCEPT or served is None or not served.live.broken:
            return verdict
        live, policy = served.live, predictor.policy
        return Verdict(
            Decision.ESCALATE,
            f"nothing is accepted, because the promised error of {policy.target_error:.3g} is "
            f"broken: {live.errors} of {live.accepted} accepted answers were wrong by feedback "
            f"(e-value {live.e_value:.3g})",
        )

    @property
    def _full(self) -> bool:
        return self._inbox.qsize() >= INBOX_SIZE

    def _current(self, predictor: Predictor) -> ServedPolicy | None:
        """What is known of a predictor's policy, if it is the one that is served."""
        served = self._policies.get(predictor.card.adapter)
        return served if served is not None and served.policy is predictor.policy else None


def _describe(predictor: Predictor) -> ServedPolicy:
    policy, novelty = predictor.policy, predictor.novelty
    source = Source(
        adapter_digest=predictor.card.digest,
        bank=json.dumps(policy.bank or {"samples": predictor.samples}, sort_keys=True),
        # What it promises, not how that was vouched for: digest or none, it is the same promise.
        policy=policy.model_dump_json(exclude={"digest"}),
        novelty_digest=novelty.digest if novelty else None,
    )
    return ServedPolicy(predictor.card.adapter, tuple(predictor.labels), policy, source)
