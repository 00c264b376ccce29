"""Scores a file: every row of it, in order, in a finished file that appears whole or not at all."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice, zip_longest
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dalorra.errors import ConfigError, InputError
from dalorra.scoring.answers import Line, Scorer, answer
from dalorra.scoring.job import Job
from dalorra.scoring.journal import Journal
from dalorra.scoring.outputs import own_columns
from dalorra.scoring.questions import WINDOW_RECORDS, Questions
from dalorra.tables import read_records

Answers = Callable[[Questions], Iterator[list[Line]]]
"""Answers all windows, order kept: see `locally`."""


def score_file(job: Job, answers: Answers, *, resume: bool = False) -> Counter[str]:
    """Answers every row that has not been answered yet, and writes the finished file.

    Args:
        job: what is to be scored.
        answers: answers the windows.
        resume: whether to go on with an interrupted run where there is one.

    Returns:
        How many rows got each decision, and how many an `error`.

    Raises:
        ConfigError: the finished file is there already, or an unfinished run that is not to be
            resumed or had another input; the input is damaged or empty; its own columns do not
            fit into the output.
        InputError: a row does not fit and `on_error` is `stop`, or none fits.
    """
    if job.out.exists():
        raise ConfigError(f"{job.out} is there already: delete it, or name another file")
    rows = _survey(job)
    identity = {
        "input": _digest(job.source),
        "column mapping": dict(job.columns.names),
        **job.identity,
    }
    with Journal.open(job.journal, identity, resume=resume) as journal:
        if journal.lines < rows:
            with _progress(rows, journal.lines) as advance:
                windows = Questions(job.source, job.columns, journal.lines, WINDOW_RECORDS)
                for lines in answers(windows):
                    journal.append(lines)
                    advance(len(lines))
        counts = _finish(job, journal)
    job.journal.unlink()
    return counts


def locally(load: Callable[[], Scorer], batch_rows: int) -> Answers:
    """Answers in this process.

    Args:
        load: makes the predictor.
        batch_rows: packed rows of one forward.
    """

    def answers(questions: Questions) -> Iterator[list[Line]]:
        predictor = load()
        for window in questions:
            yield answer(predictor, window, batch_rows)

    return answers


def _survey(job: Job) -> int:
    """Number of rows. Finds what is wrong with them while nothing is lost by stopping."""
    count = fitting = 0
    first_problem = ""
    rows = read_records(job.source)
    while window := list(islice(rows, WINDOW_RECORDS)):
        for row in window:
            problem = job.columns.question(row).problem
            if problem is None:
                fitting += 1
                continue
            first_problem = first_problem or f"{row.where}: {problem}"
            if job.on_error == "stop":
                raise InputError(
                    f"{first_problem}; correct the row, or keep it with what is wrong as its "
                    "answer: --on-error record"
                )
        if job.keep_columns:
            job.output.foresee(window)
        count += len(window)
    if not count:
        raise ConfigError(f"{job.source} holds no rows, expected at least one")
    if not fitting:
        raise InputError(f"none of the {count} rows fits; {first_problem}")
    return count


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _progress(rows: int, done: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; the context's value advances it."""
    console = Console(stderr=True)
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not console.is_terminal
    with Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        task = bar.add_task("scoring", total=rows, completed=done)
        yield lambda rows: bar.advance(task, rows)


def _finish(job: Job, journal: Journal) -> Counter[str]:
    counts: Counter[str] = Counter()
    unfinished = job.out.with_name(f".{job.out.name}.tmp")
    try:
        job.output.write(unfinished, _records(job, journal, counts))
        unfinished.replace(job.out)
    finally:
        unfinished.unlink(missing_ok=True)
    return counts


def _records(job: Job, journal: Journal, counts: Counter[str]) -> Iterator[Mapping[str, object]]:
    """Rows and answers side by side; counts the decisions on the way."""
    for row, line in zip_longest(read_records(job.source), journal):
        if row is None or line is None or row.number != line["row"]:
            raise ConfigError(
                f"{journal.path} does not answer {job.source} row by row: delete it to start again"
            )
        counts[line["decision"] or "error"] += 1
        own = own_columns(row) if job.keep_columns else {}
        yield {"row": row.number, **own, **line}
