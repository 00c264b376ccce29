"""How far a file has come: a bar on a terminal, a line now and then in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LINE_SECONDS = 15.0
"""Between two lines of a log."""


@contextmanager
def progress(records: int, done: int) -> Iterator[Callable[[int], None]]:
    """Shows on stderr how many records are answered; the context's value adds to them.

    Args:
        records: of the file.
        done: answered by an earlier run.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(records, done).add
        return
    columns = (
        TextColumn("scoring"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("scoring", total=records, completed=done)
        yield lambda answered: bar.advance(task, answered)


def say(sentence: str) -> None:
    """Shows on stderr what the reader of the result should know."""
    Console(stderr=True, soft_wrap=True).print(sentence, markup=False, highlight=False)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.3g} rows/s" if task.speed else "")


class _Lines:
    """A line whenever `LINE_SECONDS` have passed, with the rate since the one before."""

    def __init__(self, records: int, done: int) -> None:
        self._records = records
        self._done = self._said = done
        self._since = time.monotonic()

    def add(self, answered: int) -> None:
        """Takes note of that many more."""
        self._done += answered
        seconds = time.monotonic() - self._since
        if seconds < LINE_SECONDS:
            return
        rate = (self._done - self._said) / seconds
        left = (self._records - self._done) / rate
        say(
            f"scored {self._done} of {self._records} rows, {rate:.3g} rows/s, "
            f"{_duration(left)} left"
        )
        self._said, self._since = self._done, self._since + seconds


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
