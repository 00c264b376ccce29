"""The front of the engine: admits inputs, merges equal ones, tokenises, and waits for answers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from dalorra.errors import InputError
from service.engine.admission import Admission
from service.engine.batcher import Batcher
from service.engine.entry import Answer, Entry, Stage
from service.engine.interfaces import Limits, Observer, Predictor
from service.engine.lengths import Lengths, sizes_of
from service.engine.pace import Pace
from service.engine.queue import Queue
from service.engine.sent import Sent
from service.engine.worker import Worker
from service.errors import (
    DeadlineError,
    DrainingError,
    InferenceError,
    ServiceError,
    UnavailableError,
)

if TYPE_CHECKING:
    from dalorra.forward.batches import State
    from dalorra.prompts import Prompt
    from service.engine.interfaces import Input

_log = structlog.get_logger("dalorra.engine")


@dataclass(frozen=True, slots=True)
class _TokenizedInput:
    prompt: Prompt
    own_rows: int
    state: State | None
    seconds: float


class Engine:
    """Answers inputs; all methods run on the event loop that `start` was called on.

    Args:
        model: the one thread that may call `Predictor.predict`.
        tokenizer: threads that may call `Predictor.encode`, beside the running forward.
        limits: what it holds at most.
        observer: hears what happens.
    """

    def __init__(
        self, *, model: Executor, tokenizer: Executor, limits: Limits, observer: Observer
    ) -> None:
        self._tokenizer = tokenizer
        self._observer = observer
        self._model = model
        self._pace = Pace(limits.batch_seconds)
        self._lengths = Lengths()
        self._admission = Admission(limits, self._pace)
        self._queue = Queue()
        self._batcher = Batcher(
            Worker(),
            model,
            queue=self._queue,
            admission=self._admission,
            pace=self._pace,
            limits=limits,
            observer=observer,
            done=self._forget,
        )
        self._sent = Sent()
        self._in_flight: dict[Hashable, Entry] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._refusal: Callable[[], ServiceError] | None = None  # what newcomers are told
        self._task: asyncio.Task[None] | None = None

    @property
    def in_flight(self) -> int:
        """Distinct inputs that are neither answered nor failed yet, those that run included."""
        return len(self._in_flight)

    @property
    def waiting(self) -> int:
        """Tokenised inputs that wait for the model."""
        return len(self._queue)

    @property
    def queue_requests(self) -> int:
        """Inputs that wait, those in the tokeniser included."""
        return self._admission.requests

    @property
    def queue_rows(self) -> int:
        """Packed rows that wait."""
        return self._admission.rows

    @property
    def alive(self) -> bool:
        """Whether batches are being run: the batcher lives and its forward does not hang."""
        task = self._task
        if task is None or task.done():
            return False
        return not self._batcher.stalled(task.get_loop().time())

    async def measure(self, predictor: Predictor) -> None:
        """Learns how fast the model is, before the first requests come all at once.

        Args:
            predictor: warmed up.
        """
        loop = asyncio.get_running_loop()
        for prompt in predictor.examples():
            self._pace.begin(predictor.packed_rows(prompt), predictor.batching, loop.time())
            await loop.run_in_executor(self._model, predictor.predict, [prompt])
            self._pace.end(loop.time())

    def start(self) -> None:
        """Starts to run batches."""
        self._task = asyncio.get_running_loop().create_task(self._batcher.run(), name="batcher")
        self._task.add_done_callback(self._stopped)

    async def predict(
        self,
        predictor: Predictor,
        inputs: Sequence[Input],
        *,
        within: float,
        client: Hashable | None = None,
    ) -> list[Answer]:
        """Answers inputs by one predictor, see `predict_each`."""
        asked = [(predictor, value) for value in inputs]
        return await self.predict_each(asked, within=within, client=client)

    async def predict_each(
        self,
        asked: Sequence[tuple[Predictor, Input]],
        *,
        within: float,
        client: Hashable | None = None,
    ) -> list[Answer]:
        """Answers inputs, order kept. Cancelling it frees the places it holds.

        Args:
            asked: at least one input and who answers it: a predictor that is warmed up, and answers
                whatever is loaded or unloaded meanwhile. All are admitted or none is.
            within: seconds until it gives up.
            client: who asks; with None for all, nobody's share of the queue is limited.

        Raises:
            InputError: an input does not fit the template; has its place if there are several.
            QueueFullError: there is no place for all of them, or the model has become so slow
                meanwhile that they would be answered too late.
            BatchTooLargeError: they would be answered too late though nothing else waited.
            DeadlineError: not all answers were ready in time, against all estimates.
            InferenceError: the forward failed on one of them.
            DrainingError, UnavailableError: the engine takes no more work.
        """
        if self._refusal is not None:
            raise self._refusal()
        now = asyncio.get_running_loop().time()
        deadline = now + within
        seats = self._admit(asked, now=now, within=within, client=client)
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.wait(
                    [waiter for _, waiter in seats], return_when=asyncio.FIRST_EXCEPTION
                )
        except TimeoutError:
            raise DeadlineError(f"the answer was not ready within {within:g} s") from None
        else:
            _raise_first([waiter for _, waiter in seats])
            answered = [(entry, waiter.result()) for entry, waiter in seats]
            return self._sent.own(client, answered)
        finally:
            for entry, waiter in seats:
                self._leave(entry, waiter)

    async def drain(self, seconds: float) -> None:
        """Takes no more work, finishes what it has, and after `seconds` fails what is left."""
        self._refusal = self._refusal or _draining
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("drain_incomplete", unanswered=self.in_flight)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._fail_all(self._refusal)

    def _admit(
        self,
        asked: Sequence[tuple[Predictor, Input]],
        *,
        now: float,
        within: float,
        client: Hashable | None,
    ) -> list[tuple[Entry, asyncio.Future[Answer]]]:
        """A seat for each input: beside an equal one that is on its way, or in a new entry."""
        keys = [(predictor, _key(value, predictor.fields)) for predictor, value in asked]
        fresh = {
            key: one for key, one in zip(keys, asked, strict=True) if key not in self._in_flight
        }
        sizes = sizes_of(list(fresh.values()))
        rows = [
            self._lengths.rows(predictor, size)
            for (predictor, _), size in zip(fresh.values(), sizes, strict=True)
        ]
        if fresh:
            self._admission.reserve(rows, client=client, within=within, now=now)
        for _ in range(len(keys) - len(fresh)):
            self._observer.coalesced()
        entries = [
            Entry(key, *one, estimate, size, client)
            for (key, one), estimate, size in zip(fresh.items(), rows, sizes, strict=True)
        ]
        self._in_flight.update((entry.key, entry) for entry in entries)
        self._idle.clear()
        seats = [
            (entry, entry.join(now + within)) for entry in map(self._in_flight.__getitem__, keys)
        ]
        if entries:
            tokenized = asyncio.get_running_loop().run_in_executor(
                self._tokenizer, self._tokenize, entries
            )
            tokenized.add_done_callback(lambda future: self._enqueue(entries, future))
        return seats

    def _tokenize(self, entries: list[Entry]) -> list[_TokenizedInput | Exception]:
        """Runs on a tokeniser thread and changes nothing there."""
        results: list[_TokenizedInput | Exception] = []
        for entry in entries:
            started = time.perf_counter()
            try:
                prompt = entry.predictor.encode(entry.value)
                rows, state = entry.predictor.packed_rows(prompt), None
                if prompt.options is not None:
                    state = entry.predictor.state_of(prompt)
                    rows -= state.rows
            except Exception as error:  # noqa: BLE001 - it belongs to this input
                results.append(error)
            else:
                results.append(_TokenizedInput(prompt, rows, state, time.perf_counter() - started))
        return results

    def _enqueue(
        self, entries: list[Entry], future: asyncio.Future[list[_TokenizedInput | Exception]]
    ) -> None:
        results: Sequence[_TokenizedInput | Exception]
        if future.cancelled() or (error := future.exception()) is not None:
            results = [RuntimeError(f"the tokeniser stopped: {error!r}")] * len(entries)
        else:
            results = future.result()
        now = future.get_loop().time()
        both = list(zip(entries, results, strict=True))
        asked = Counter(
            (entry.predictor, result.state)
            for entry, result in both
            if isinstance(result, _TokenizedInput)
        )
        for entry, result in both:
            if entry.stage is not Stage.TOKENIZING:
                continue  # everyone who waited has left, and its place was given back
            if isinstance(result, Exception):
                self._admission.release(entry)
                entry.fail(_input_failure(result))
                self._forget(entry)
                continue
            prompt, state = result.prompt, result.state
            rows = result.own_rows
            if state is not None:
                rows += round(state.rows / asked[entry.predictor, state])
            self._lengths.learn(entry.predictor, entry.size, rows, cut=prompt.truncated)
            self._admission.settle(entry, rows)
            self._observer.tokenized(prompt.tokens, result.seconds)
            entry.prompt, entry.own_rows, entry.state = prompt, result.own_rows, state
            entry.tokenize_seconds, entry.queued_at = result.seconds, now
            entry.stage = Stage.QUEUED
            self._queue.push(entry)
            self._batcher.wake()

    def _leave(self, entry: Entry, waiter: asyncio.Future[Answer]) -> None:
        """One caller goes; an entry that nobody else waits for frees its place at once."""
        entry.leave(waiter)
        if not entry.waiters and entry.stage in (Stage.TOKENIZING, Stage.QUEUED):
            self._queue.discard(entry)
            self._admission.release(entry)
            entry.stage = Stage.DONE
            self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        self._in_flight.pop(entry.key, None)
        if not self._in_flight:
            self._idle.set()

    def _stopped(self, task: asyncio.Task[None]) -> None:
        """The batcher ended: by `drain`, or because the device is broken."""
        if task.cancelled():
            return
        error = task.exception()
        _log.critical("engine_died", exc_info=error)
        self._refusal = _broken
        self._fail_all(_broken)

    def _fail_all(self, error: Callable[[], ServiceError]) -> None:
        for entry in list(self._in_flight.values()):
            if entry.stage in (Stage.TOKENIZING, Stage.QUEUED):
                self._queue.discard(entry)
                self._admission.release(entry)
            entry.fail(error())
            self._forget(entry)


def _draining() -> ServiceError:
    return DrainingError("the server is shutting down: try again")


def _broken() -> ServiceError:
    return UnavailableError("the model no longer works: restart the server")


def _key(value: Input, fields: Sequence[str]) -> Hashable:
    """Equal for inputs that make equal prompts: a string is short for its template's one field.

    A question about a state is what it asks: what its client calls it is no part of it.
    """
    if isinstance(value, Mapping):
        return frozenset(value.items())
    if isinstance(value, str) and len(fields) == 1:
        return frozenset({(fields[0], value)})
    return value


def _raise_first(waiters: Sequence[asyncio.Future[Answer]]) -> None:
    """Raises the failure of the first input that has one."""
    for index, waiter in enumerate(waiters):
        if waiter.done() and (error := waiter.exception()) is not None:
            if isinstance(error, InputError) and len(waiters) > 1:
                # A new one: the same failure may belong to other requests, at other places.
                raise type(error)(str(error), index) from error
            raise error


def _input_failure(error: Exception) -> Exception:
    if isinstance(error, InputError):
        return error
    _log.error("tokenize_failed", exc_info=error)
    return InferenceError("this input could not be tokenised")
