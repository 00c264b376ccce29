"""An event loop whose clock jumps to the next timer, and threads that live on it."""

import asyncio
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(0)
        if not events:
            if timeout is None:
                raise RuntimeError("everything waits, and nothing will ever happen")
            self.loop.now += timeout
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs at once what would take hours."""

    def __init__(self) -> None:
        self.now = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


class VirtualThread(Executor):
    """One thread on the virtual clock: a call takes as long as `cost` says of its arguments."""

    def __init__(self, loop: VirtualLoop, cost: Callable[..., float]) -> None:
        self._loop = loop
        self._cost = cost
        self._busy_until = 0.0
        self._calls: deque[Callable[[], None]] = deque()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:  # noqa: BLE001 - whoever awaits the future decides
                future.set_exception(error)

        started = max(self._loop.now, self._busy_until)
        self._busy_until = started + self._cost(*args, **kwargs)
        self._calls.append(call)
        # The loop does not keep the order of timers that are due together; the deque does.
        self._loop.call_at(self._busy_until, self._run_next)
        return future

    def _run_next(self) -> None:
        self._calls.popleft()()


def run(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Runs `main` on a loop of its own and closes it."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main(loop))
    finally:
        loop.close()
