"""The model thread, and what a batch does there: run, and if it fails, find the culprit."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import structlog

from service.engine.interfaces import Predictor
from service.errors import UnavailableError

if TYPE_CHECKING:
    from dalorra.decision.predictive import Prediction
    from dalorra.prompts import Prompt

P = ParamSpec("P")
T = TypeVar("T")

_log = structlog.get_logger("dalorra.engine")


class ModelThread(Executor):
    """The one thread that touches the model, from loading it to the last forward.

    A daemon, unlike the threads of `ThreadPoolExecutor`: a forward that hangs must not keep the
    process from exiting.
    """

    def __init__(self, name: str = "model") -> None:
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queues a call; its result or exception arrives in the future.

        Raises:
            RuntimeError: the thread was shut down.
        """
        future: Future[T] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - whoever awaits the future decides
                future.set_exception(error)

        with self._lock:
            if self._closed:
                raise RuntimeError("the model thread was shut down")
            self._inbox.put(call)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Lets the thread end after what was submitted; `wait` joins it."""
        with self._lock:
            self._closed = True
            self._inbox.put(None)
        if wait:
            self._thread.join()

    def _run(self) -> None:
        while (call := self._inbox.get()) is not None:
            call()
            del call  # it holds the batch and its results


class Worker:
    """Runs batches on the predictor; every method runs on the model thread.

    A forward that raises fails nobody at once: the batch is halved until the input that breaks it
    is alone, so a poisoned one cannot fail its neighbours, and a batch that was too large for the
    memory succeeds in parts. When nothing in a batch succeeds, the last prompt that succeeded is
    run again: if even that fails the device is broken, not the input.
    """

    def __init__(self) -> None:
        self._known_good: tuple[Predictor, Prompt] | None = None

    def run(self, predictor: Predictor, prompts: Sequence[Prompt]) -> list[Prediction | Exception]:
        """One prediction or one error for each prompt, order kept.

        Raises:
            UnavailableError: the device is broken; nothing will succeed any more.
        """
        results = self._run_or_halve(predictor, prompts)
        succeeded = [
            prompt
            for prompt, result in zip(prompts, results, strict=True)
            if not isinstance(result, Exception)
        ]
        if succeeded:
            self._known_good = predictor, succeeded[0]
        else:
            self._check_device(predictor)
        return results

    def _run_or_halve(
        self, predictor: Predictor, prompts: Sequence[Prompt]
    ) -> list[Prediction | Exception]:
        try:
            return [*_forward(predictor, prompts)]
        except Exception as error:  # noqa: BLE001 - any failure belongs to the inputs it hit
            _log.warning("forward_failed", batch_requests=len(prompts), exc_info=error)
            if len(prompts) == 1:
                return [error]
        # Outside the handler: the traceback of an out-of-memory error keeps its tensors alive.
        middle = len(prompts) // 2
        halves = prompts[:middle], prompts[middle:]
        return [result for half in halves for result in self._run_or_halve(predictor, half)]

    def _check_device(self, predictor: Predictor) -> None:
        try:
            if self._known_good is None:
                for step in predictor.warm_up():
                    step()
            else:
                proven, prompt = self._known_good
                _forward(proven, [prompt])
        except Exception as error:
            raise UnavailableError("the model no longer works: restart the server") from error


def _forward(predictor: Predictor, prompts: Sequence[Prompt]) -> list[Prediction]:
    predictions = predictor.predict(prompts)
    if len(predictions) != len(prompts):
        raise RuntimeError(f"{len(prompts)} prompts gave {len(predictions)} predictions")
    for prediction in predictions:
        if not math.isfinite(prediction.probability + prediction.variance):
            raise FloatingPointError("the forward gave a probability that is not a number")
    return predictions
