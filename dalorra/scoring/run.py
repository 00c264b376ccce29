"""Scores a file: every record of it, in order, in an output that appears whole or not at all."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice, zip_longest
from pathlib import Path

from dalorra.errors import ConfigError, InputError
from dalorra.scoring.answers import Line, Scorer, answer
from dalorra.scoring.job import Job
from dalorra.scoring.journal import Journal
from dalorra.scoring.progress import progress, say
from dalorra.scoring.questions import Questions
from dalorra.tables import Record, read_records

_LOOK_RECORDS = 1024  # that are looked at together before anything is answered

AnswerWindows = Callable[[Questions], Iterator[list[Line]]]
"""Answers a file window by window, order kept: see `locally`."""


def score_file(job: Job, answer_windows: AnswerWindows, *, resume: bool = False) -> Counter[str]:
    """Answers every record that has not been answered yet, and writes the finished file.

    Args:
        job: what is to be scored.
        answer_windows: `locally`, or `on_ray`.
        resume: whether to go on with an interrupted run where there is one.

    Returns:
        How many records got each decision, and how many an `error`.

    Raises:
        ConfigError: the finished file is there already, or an unfinished run that is not to be
            resumed or had another input; the input is damaged or empty.
        InputError: a record does not fit and `on_error` is `stop`, or none fits.
    """
    if job.out.exists():
        raise ConfigError(f"{job.out} is there already: delete it, or name another file")
    records = _survey(job)
    identity = {
        "input": _digest(job.source),
        "column mapping": dict(job.columns.names),
        **job.identity,
    }
    with Journal.open(job.journal, identity, resume=resume) as journal:
        if journal.lines < records:
            with progress(records, journal.lines) as advance:
                windows = Questions(job.source, job.columns, journal.lines, job.batch_rows)
                for lines in answer_windows(windows):
                    journal.append(lines)
                    advance(len(lines))
        counts = _finish(job, journal)
    job.journal.unlink()
    return counts


def locally(load: Callable[[], Scorer]) -> AnswerWindows:
    """Answers in this process, by the predictor that `load` makes."""

    def answer_windows(questions: Questions) -> Iterator[list[Line]]:
        predictor = load()
        for window in questions:
            yield answer(predictor, window)

    return answer_windows


def _survey(job: Job) -> int:
    """Number of records. Finds what is wrong with them while nothing is lost by stopping."""
    count = fitting = 0
    first_problem = ""
    records = read_records(job.source)
    while window := list(islice(records, _LOOK_RECORDS)):
        for record in window:
            problem = job.columns.question(record).problem
            if problem is None:
                fitting += 1
                continue
            first_problem = first_problem or f"{record.where}: {problem}"
            if job.on_error == "stop":
                raise InputError(
                    f"{first_problem}; correct the row, or keep it with what is wrong as its "
                    "answer: --on-error record"
                )
        job.output.foresee(window)
        count += len(window)
    if not count:
        raise ConfigError(f"{job.source} holds no rows, expected at least one")
    if not fitting:
        raise InputError(f"none of the {count} rows fits; {first_problem}")
    for sentence in job.output.settle():
        say(sentence)
    return count


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finish(job: Job, journal: Journal) -> Counter[str]:
    counts: Counter[str] = Counter()
    unfinished = job.out.with_name(f".{job.out.name}.tmp")
    try:
        job.output.write(unfinished, _answered(job, journal, counts))
        unfinished.replace(job.out)
    finally:
        unfinished.unlink(missing_ok=True)
    return counts


def _answered(job: Job, journal: Journal, counts: Counter[str]) -> Iterator[tuple[Record, Line]]:
    """Records and answers side by side; counts the decisions on the way."""
    for record, line in zip_longest(read_records(job.source), journal):
        if record is None or line is None or record.number != line["row"]:
            raise ConfigError(
                f"{journal.path} does not answer {job.source} row by row: delete it to start again"
            )
        counts[line["decision"] or "error"] += 1
        yield record, line
