"""The finished file, as JSON lines, CSV or parquet: each record with its answer, in order."""

import csv
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from dalorra.errors import ConfigError
from dalorra.scoring.answers import ANSWER_COLUMNS
from dalorra.scoring.own_columns import Answered, Losses, as_json, output_name, own_columns, plain
from dalorra.tables import Record, spelled

SUFFIXES = (".jsonl", ".csv", ".parquet")


class Output(Protocol):
    """A form that the finished file can have."""

    def foresee(self, records: Sequence[Record]) -> None:
        """Sees all records of the input, part by part, before anything is answered."""

    def settle(self) -> list[str]:
        """Decides how they are written, once all are seen; says what will not be as it was."""

    def write(self, path: Path, answered: Answered) -> None:
        """Writes the whole file."""


def output_for(path: Path, labels: Sequence[str], source: Path | None) -> Output:
    """The form that the suffix of `path` asks for.

    Args:
        path: the finished file.
        labels: names of the adapter's labels.
        source: the input, where the records' own columns are wanted.

    Raises:
        ConfigError: there is no such form, or it needs pyarrow.
    """
    if path.suffix == ".jsonl":
        return JsonLines(own=source is not None)
    if path.suffix == ".csv":
        return Csv(own=source is not None)
    if path.suffix != ".parquet":
        raise ConfigError(f"--out {path} must end in one of {', '.join(SUFFIXES)}")
    if find_spec("pyarrow") is None:
        raise ConfigError(f"{path} needs pyarrow: pip install pyarrow, or write a .jsonl file")
    from dalorra.scoring.parquet import Copied, Inferred

    if source and source.suffix == ".parquet":
        return Copied(labels, source)
    return Inferred(labels, source)


class JsonLines:
    """One object in each line. What JSON has no word for is written as text: see `plain`.

    Args:
        own: whether the records' own columns are wanted.
    """

    def __init__(self, *, own: bool) -> None:
        self._own = own
        self._losses = Losses()

    def foresee(self, records: Sequence[Record]) -> None:
        if self._own:
            self._losses.look(records)

    def settle(self) -> list[str]:
        return self._losses.sentences()

    def write(self, path: Path, answered: Answered) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            for record, line in answered:
                own = own_columns(record) if self._own else {}
                file.write(as_json({"row": record.number, **own, **line}) + "\n")


class Csv:
    """A header and one line for each record. What is neither text nor empty is written as JSON.

    Args:
        own: whether the records' own columns are wanted.
    """

    def __init__(self, *, own: bool) -> None:
        self._own = own
        self._names: dict[str, None] = {}
        self._losses = Losses()

    def foresee(self, records: Sequence[Record]) -> None:
        if self._own:
            self._losses.look(records)
            for record in records:
                self._names |= dict.fromkeys(map(output_name, record.values))

    def settle(self) -> list[str]:
        return self._losses.sentences()

    def write(self, path: Path, answered: Answered) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("row", *self._names, *ANSWER_COLUMNS))
            for record, line in answered:
                own = own_columns(record)
                cells = [own.get(name) for name in self._names]
                cells += [line[name] for name in ANSWER_COLUMNS]
                writer.writerow((record.number, *map(_csv_cell, cells)))


def _csv_cell(value: object) -> str:
    words = plain(value)
    if words is None:
        return ""
    return spelled(words) if isinstance(words, str) else as_json(words)
