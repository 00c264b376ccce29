"""What a file asks: the template's fields of each of its rows, a window of them at a time."""

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dalorra.errors import ConfigError, InputError
from dalorra.prompts import PromptFormat
from dalorra.tables import Row, read_records

WINDOW_RECORDS = 512
"""Rows that are sorted by length, answered, and written down together."""


@dataclass(frozen=True, slots=True)
class Question:
    """One row as the predictor is asked about it.

    Attributes:
        row: its number.
        fields: of the template; None when the row has none to offer.
        problem: what is wrong with the row; None when it fits.
    """

    row: int
    fields: Mapping[str, str] | None
    problem: str | None = None


@dataclass(frozen=True)
class Columns:
    """Where the rows hold the template's fields.

    Args:
        prompt_format: the template.
        names: field → column, where they differ.

    Raises:
        ConfigError: `names` has a field that the template has not.
    """

    prompt_format: PromptFormat
    names: Mapping[str, str]

    def __post_init__(self) -> None:
        if stray := set(self.names) - set(self.prompt_format.fields):
            raise ConfigError(
                f"the template has no field {min(stray)!r}: it has "
                f"{', '.join(self.prompt_format.fields)}"
            )

    def question(self, row: Row) -> Question:
        """What `row` asks, or why it asks nothing."""
        if row.problem is not None:
            return Question(row.number, None, row.problem)
        try:
            fields = {name: self._text(row, name) for name in self.prompt_format.fields}
            return Question(row.number, self.prompt_format.as_fields(fields))
        except InputError as error:
            return Question(row.number, None, str(error))

    def _text(self, row: Row, field: str) -> str:
        column = self.names.get(field, field)
        if column not in row.values:
            known = ", ".join(map(repr, row.values)) or "none"
            raise InputError(f"no column {column!r} for the field {field!r}; it has {known}")
        value = row.values[column]
        if not isinstance(value, str):
            raise InputError(f"column {column!r} holds {reprlib.repr(value)}, expected text")
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can say what no text can
            raise InputError(f"column {column!r} holds half of a surrogate pair") from None
        return value


@dataclass(frozen=True, slots=True)
class Questions:
    """The windows of a file, from some row on. Can be iterated again, and sent to another process.

    Attributes:
        path: the file.
        columns: where its rows hold the fields.
        skip: rows that are left out, from the first.
        window_records: size of a window.
    """

    path: Path
    columns: Columns
    skip: int = 0
    window_records: int = WINDOW_RECORDS

    def __iter__(self) -> Iterator[list[Question]]:
        rows = islice(read_records(self.path), self.skip, None)
        while window := [self.columns.question(row) for row in islice(rows, self.window_records)]:
            yield window
