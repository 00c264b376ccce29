"""Feeds the model thread: while one batch runs, the next one fills. There is no timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from service.engine.admission import Admission
from service.engine.entry import Answer, Entry, Stage
from service.engine.interfaces import Limits, Observer, Predictor
from service.engine.pace import Pace
from service.engine.queue import Queue
from service.engine.worker import Worker
from service.errors import DeadlineError, InferenceError, QueueFullError

if TYPE_CHECKING:
    from dalorra.decision.predictive import Prediction
    from dalorra.prompts import Prompt


class Done(NamedTuple):
    """What became of a batch, by entry: tokens that were known before it, and what it gave."""

    cached_tokens: list[int]
    results: list[Prediction | Exception]


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries of one predictor that share a forward, and when it began in loop time."""

    predictor: Predictor
    entries: list[Entry]
    prompts: list[Prompt]
    started_at: float

    @property
    def rows(self) -> int:
        """Packed rows, padding left out."""
        states = {entry.state for entry in self.entries if entry.state is not None}
        own = sum(entry.own_rows for entry in self.entries)
        return own + sum(state.rows for state in states)


class Batcher:
    """Owner of the running batch.

    Args:
        worker: runs on the threads of `model`, which must be one.
        done: called with each entry once it is answered or failed.
    """

    def __init__(
        self,
        worker: Worker,
        model: Executor,
        *,
        queue: Queue,
        admission: Admission,
        pace: Pace,
        limits: Limits,
        observer: Observer,
        done: Callable[[Entry], None],
    ) -> None:
        self._worker = worker
        self._model = model
        self._queue = queue
        self._admission = admission
        self._pace = pace
        self._limits = limits
        self._observer = observer
        self._done = done
        self._filled = asyncio.Event()
        self._running: Batch | None = None

    def wake(self) -> None:
        """Says that the queue is no longer empty."""
        self._filled.set()

    def stalled(self, now: float) -> bool:
        """Whether the running batch takes so long that the model thread must hang."""
        running = self._running
        return running is not None and now - running.started_at > self._limits.stall_seconds

    async def run(self) -> None:
        """Runs batches until cancelled.

        Raises:
            UnavailableError: the device is broken.
        """
        loop = asyncio.get_running_loop()
        finished: tuple[Batch, Done, float] | None = None
        while True:
            batch = self._next_batch(loop.time())
            self._running = batch
            forward = self._submit(batch) if batch else None
            # The next forward is on its way before the last one's answers are handed out.
            if finished is not None:
                self._hand_out(*finished)
                finished = None
            if batch is None or forward is None:
                self._filled.clear()
                await self._filled.wait()
                continue
            done = await forward
            self._pace.end(loop.time())
            finished = batch, done, loop.time() - batch.started_at

    def _submit(self, batch: Batch) -> asyncio.Future[Done]:
        loop = asyncio.get_running_loop()
        self._pace.begin(batch.rows, batch.predictor.batching, batch.started_at)
        return loop.run_in_executor(self._model, self._work, batch.predictor, batch.prompts)

    def _work(self, predictor: Predictor, prompts: list[Prompt]) -> Done:
        """Runs on the model thread, whose the prefix cache is."""
        cached = [predictor.cached_tokens(prompt) for prompt in prompts]
        return Done(cached, self._worker.run(predictor, prompts))

    def _next_batch(self, now: float) -> Batch | None:
        for entry in self._queue.hopeless(now, self._pace.typical(now)):
            self._drop(entry, now)
        while entries := self._queue.take(now, self._pace.latest()):
            wanted = [entry for entry in entries if self._start(entry, now)]
            if wanted:
                prompts = [entry.prompt for entry in wanted if entry.prompt is not None]
                return Batch(wanted[0].predictor, wanted, prompts, now)
        return None

    def _drop(self, entry: Entry, now: float) -> None:
        """Refuses an entry after all, before anything is computed for it."""
        self._queue.discard(entry)
        self._admission.release(entry)
        if not entry.wanted(now):
            entry.fail(_too_late())
        else:
            seconds = self._admission.retry_after(1.0, now)
            sentence = (
                "the model has become slower, and the answer would not be ready in time: "
                f"try again in {seconds} s"
            )
            entry.fail(QueueFullError(sentence, retry_after=seconds))
        self._done(entry)

    def _start(self, entry: Entry, now: float) -> bool:
        """Takes an entry out of its place; False when its time was up before its turn came."""
        self._admission.release(entry)
        if not entry.wanted(now):
            entry.fail(_too_late())
            self._done(entry)
            return False
        entry.stage = Stage.RUNNING
        entry.started_at = now
        self._observer.dequeued(now - entry.queued_at)
        return True

    def _hand_out(self, batch: Batch, done: Done, seconds: float) -> None:
        self._observer.batch_finished(len(batch.entries), batch.rows, seconds)
        for entry, cached, result in zip(batch.entries, *done, strict=True):
            if isinstance(result, Exception):
                entry.fail(InferenceError("the forward pass failed on this input"))
            else:
                entry.resolve(_answer(entry, result, cached, seconds, len(batch.entries)))
            self._done(entry)


def _too_late() -> DeadlineError:
    return DeadlineError("the answer was not ready in time")


def _answer(
    entry: Entry, prediction: Prediction, cached: int, seconds: float, batch_requests: int
) -> Answer:
    prompt = entry.prompt
    if prompt is None:
        raise RuntimeError("an entry ran before it was tokenised")
    return Answer(
        prediction=prediction,
        tokens=prompt.tokens,
        shared_tokens=prompt.shared,
        cached_tokens=cached,
        truncated=prompt.truncated,
        tokenize_seconds=entry.tokenize_seconds,
        queued_at=entry.queued_at,
        queue_seconds=entry.started_at - entry.queued_at,
        inference_seconds=seconds,
        batch_requests=batch_requests,
    )
