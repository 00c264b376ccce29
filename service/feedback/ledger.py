"""What the server talks to: keeps answers, takes the truth about them, watches the promise.

Everything here is called on the event loop and never waits for a disk: it puts things into a
bounded inbox, or reads what the clerk has worked out. When the inbox is full an answer is not kept
(and counted), and feedback is told to come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dalorra.policy import Decision, Verdict
from service.errors import FeedbackOffError, QueueFullError
from service.feedback.clerk import Clerk, Entry, Judgement, Kept, Registration, Served
from service.feedback.records import Feedback, KeptAnswer, Source
from service.feedback.store import FeedbackStore

if TYPE_CHECKING:
    from dalorra.predictive import Prediction
    from dalorra.prompts import InputFields
    from service.engine import Predictor

_INBOX = 10_000  # requests whose answers wait to be written
_STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Keeping:
    """What is kept, and what follows from it.

    Attributes:
        path: the SQLite file.
        retention_seconds: answers are deleted after it.
        max_rows: most answers that are kept.
        inputs: whether the inputs are kept, too.
        alpha: probability of calling a kept promise broken, over all time.
        strict: whether nothing is accepted any more once the promise is broken.
    """

    path: Path
    retention_seconds: float
    max_rows: int
    inputs: bool
    alpha: float
    strict: bool


class Told(Protocol):
    """What of a body is kept."""

    @property
    def request_id(self) -> str: ...
    @property
    def decision(self) -> Decision: ...


class Ledger:
    """One for a server. Without something to keep it answers that feedback is off.

    Args:
        keeping: what is kept; None: nothing is.

    Raises:
        ConfigError: the store cannot be opened.
    """

    def __init__(self, keeping: Keeping | None) -> None:
        self._keeping = keeping
        self._served: dict[str, Served] = {}
        self._inbox: queue.Queue[Entry | None] = queue.Queue(_INBOX)
        self._clerk: Clerk | None = None
        self._thread: threading.Thread | None = None
        self._refused = 0
        if keeping is not None:
            self._clerk = Clerk(
                FeedbackStore(keeping.path),
                self._inbox,
                retention_seconds=keeping.retention_seconds,
                max_rows=keeping.max_rows,
                alpha=keeping.alpha,
            )

    @property
    def on(self) -> bool:
        """Whether answers are kept."""
        return self._keeping is not None

    @property
    def alpha(self) -> float:
        """Probability of calling a kept promise broken; NaN where nothing is watched."""
        return self._keeping.alpha if self._keeping else math.nan

    @property
    def served(self) -> Sequence[Served]:
        """The policies that are served, and how they stand."""
        return tuple(self._served.values())

    @property
    def judged(self) -> Mapping[tuple[str, bool], int]:
        """Feedback that this process took, by decision and whether the answer was right."""
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

    async def stop(self) -> None:
        """Writes what waits, and ends."""
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.to_thread(self._stop, thread)

    def _stop(self, thread: threading.Thread) -> None:
        with contextlib.suppress(queue.Full):
            self._inbox.put(None, timeout=_STOP_SECONDS)
        thread.join(_STOP_SECONDS)

    async def serve(self, predictor: Predictor) -> None:
        """Says that an adapter is served; returns once what is known of its promise is known."""
        served = self._of(predictor)
        if self._thread is not None:
            done: Future[None] = Future()
            self._put(Registration(served, done))
            await asyncio.wrap_future(done)

    def keep(
        self,
        predictor: Predictor,
        inputs: Sequence[InputFields],
        predictions: Sequence[Prediction],
        told: Sequence[Told],
    ) -> None:
        """Keeps what was answered, for feedback to come."""
        if self._keeping is None:
            return
        now, decide = time.time(), predictor.policy.decide
        answers = [
            KeptAnswer(
                request_id=one.request_id,
                answered_at=now,
                label=prediction.label,
                probability=prediction.probability,
                variance=prediction.variance,
                novelty=prediction.novelty,
                samples=prediction.samples,
                decision=str(one.decision),
                accepted=decide(
                    prediction.probability, prediction.variance, prediction.novelty
                ).decision
                is Decision.ACCEPT,
                input=json.dumps(value) if self._keeping.inputs else None,
            )
            for value, prediction, one in zip(inputs, predictions, told, strict=True)
        ]
        try:
            self._inbox.put_nowait(Kept(self._of(predictor), answers))
        except queue.Full:
            self._refused += len(answers)

    async def judge(self, request_id: str, label: str) -> Feedback:
        """Takes the truth about an earlier answer.

        Raises:
            FeedbackOffError: nothing is kept.
            UnknownAnswerError, UnknownLabelError, AlreadyJudgedError, OtherAdapterError: it cannot
                be the truth about an answer that is kept.
            QueueFullError, FeedbackStoreError: not now.
        """
        if self._thread is None:
            raise FeedbackOffError(
                "feedback is off: the server keeps answers once feedback_store is set"
            )
        done: Future[Feedback] = Future()
        self._put(Judgement(request_id, label, done))
        return await asyncio.wrap_future(done)

    def guard(self, predictor: Predictor, verdict: Verdict) -> Verdict:
        """The verdict, or an escalation where the promise behind an `accept` is broken."""
        if self._keeping is None or not self._keeping.strict:
            return verdict
        if verdict.decision is not Decision.ACCEPT or not self._of(predictor).live.broken:
            return verdict
        live, policy = self._of(predictor).live, predictor.policy
        return Verdict(
            Decision.ESCALATE,
            f"nothing is accepted, because the promised error of {policy.target_error:.3g} is "
            f"broken: {live.errors} of {live.accepted} accepted answers were wrong by feedback "
            f"(e-value {live.e_value:.3g})",
        )

    def _of(self, predictor: Predictor) -> Served:
        policy, digest = predictor.policy, predictor.adapter_digest
        served = self._served.get(digest)
        if served is None or (served.policy is not policy and served.policy != policy):
            novelty = predictor.novelty
            source = Source(
                adapter_digest=digest,
                bank=json.dumps(policy.bank or {"samples": predictor.samples}, sort_keys=True),
                policy=policy.model_dump_json(),
                novelty_digest=novelty.digest if novelty else None,
            )
            served = Served(predictor.adapter_name, tuple(predictor.labels), policy, source)
            self._served[digest] = served
        return served

    def _put(self, entry: Entry) -> None:
        try:
            self._inbox.put_nowait(entry)
        except queue.Full:
            raise QueueFullError(
                "too much feedback waits to be written: try again in 1 s", retry_after=1
            ) from None
