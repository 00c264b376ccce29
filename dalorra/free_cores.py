"""Computing with as many threads as there are free cores.

At the end of every operation OpenMP's threads wait for the slowest of them, and that is the one
whose core another process has, or another thread of this one. So while threads here have to wait
for a core, fewer compute. How many are too many is what the system says they waited, in sum, over
the time that they computed. After a pause all are tried again; while that is in vain, pauses double
(`benchmarks.threads`).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Final

import torch

from dalorra.threads import operator_decides

_TASKS: Final = Path("/proc/self/task")
_TOO_MANY: Final = 0.5  # threads that wait, on average; one neighbour makes 0.64 to 0.89 on 2 cores
_LONG_ENOUGH: Final = 0.05  # seconds of computing to judge by
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 8.0


class FreeCores:
    """How many threads compute in this process; one caller at a time.

    Args:
        waited: seconds that the threads of this process have waited for a core so far, in sum.
        clock: in seconds.
        threads: how many compute.
        use: sets that.
    """

    def __init__(
        self,
        waited: Callable[[], float],
        *,
        clock: Callable[[], float] = time.monotonic,
        threads: Callable[[], int] = torch.get_num_threads,
        use: Callable[[int], None] = torch.set_num_threads,
    ) -> None:
        self._waited, self._clock, self._threads, self._use = waited, clock, threads, use
        self._most = threads()
        self._pause, self._again_at = _FIRST_PAUSE, 0.0
        self._in_use = False
        self._start_over()

    def _start_over(self) -> None:
        self._seconds_waited = self._seconds = 0.0

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Around what computes; inside another one it does nothing."""
        if self._in_use or self._most == 1:
            yield
            return
        self._in_use = True
        began, waited = self._clock(), self._waited()
        if self._threads() < self._most and began >= self._again_at:
            self._use(self._most)
            self._start_over()
        try:
            yield
        finally:
            self._in_use = False
            self._seconds += self._clock() - began
            self._seconds_waited += max(self._waited() - waited, 0.0)  # threads end meanwhile
            if self._seconds >= _LONG_ENOUGH:
                self._judge(self._seconds_waited / self._seconds)
                self._start_over()

    def _judge(self, waiting: float) -> None:
        now = self._threads()
        if waiting > _TOO_MANY and now > 1:
            if now == self._most:
                self._again_at = self._clock() + self._pause
                self._pause = min(2.0 * self._pause, _LONGEST_PAUSE)
            self._use(max(now - max(round(waiting), 1), 1))
        elif now == self._most:
            self._pause = _FIRST_PAUSE


def seconds_waited(tasks: Path = _TASKS) -> float:
    """That the threads of this process have waited for a core so far, in sum; 0 where the system
    does not say.
    """
    nanoseconds = 0
    try:
        for thread in tasks.iterdir():
            try:
                times = (thread / "schedstat").read_text(encoding="ascii").split()
            except OSError:  # it has ended meanwhile
                continue
            nanoseconds += int(times[1])
    except (OSError, ValueError, IndexError):  # no Linux
        return 0.0
    return 1e-9 * nanoseconds


@cache
def _of_this_process() -> FreeCores | None:
    return None if operator_decides() else FreeCores(seconds_waited)


@contextmanager
def on_free_cores() -> Iterator[None]:
    """Around what computes; an operator's own variables for OpenMP leave it as it is."""
    cores = _of_this_process()
    with cores.computing() if cores else nullcontext():
        yield
