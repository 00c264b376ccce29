"""What a file asks: the template's fields of each of its records, a window of them at a time."""

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dalorra.errors import ConfigError, InputError
from dalorra.prompts import PromptFormat
from dalorra.tables import Record, Unreadable, read_records

BATCH_ROWS = 2048
"""Packed rows of one forward, unless somebody asks for others."""

_ROWS_OF_A_RECORD = 32  # about the fewest
_CHARACTERS_OF_A_ROW = 4
_FORWARDS = 4  # about as many in a window of long records


@dataclass(frozen=True, slots=True)
class Question:
    """One record as the predictor is asked about it.

    Attributes:
        record: its number.
        fields: of the template; None when the record has none to offer.
        problem: what is wrong with the record; None when it fits.
    """

    record: int
    fields: Mapping[str, str] | None
    problem: str | None = None


@dataclass(frozen=True)
class Columns:
    """Where the records hold the template's fields.

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

    def question(self, record: Record) -> Question:
        """What `record` asks, or why it asks nothing."""
        if record.problem is not None:
            return Question(record.number, None, record.problem)
        try:
            fields = {name: self._text(record, name) for name in self.prompt_format.fields}
            return Question(record.number, self.prompt_format.as_fields(fields))
        except InputError as error:
            return Question(record.number, None, str(error))

    def _text(self, record: Record, field: str) -> str:
        column = self.names.get(field, field)
        if column not in record.values:
            known = ", ".join(map(repr, record.values)) or "none"
            likely = (name for name, value in record.values.items() if isinstance(value, str))
            raise InputError(
                f"no column {column!r} for the field {field!r}; it has {known}; say which one it "
                f"is: --column '{field}={next(likely, 'COLUMN')}'"
            )
        value = record.values[column]
        if isinstance(value, Unreadable):
            raise InputError(f"column {column!r} {value.problem}")
        if not isinstance(value, str):
            raise InputError(f"column {column!r} holds {reprlib.repr(value)}, expected text")
        return value


@dataclass(frozen=True, slots=True)
class Questions:
    """The windows of a file, from some record on. Can be iterated again, and pickled.

    A window is answered and written down as a whole. It is a few forwards' work, and ends after so
    many records or characters that only the file and `batch_rows` decide which.

    Attributes:
        path: the file.
        columns: where its records hold the fields.
        skip: records that are left out, from the first.
        batch_rows: packed rows of one forward.
    """

    path: Path
    columns: Columns
    skip: int = 0
    batch_rows: int = BATCH_ROWS

    def __iter__(self) -> Iterator[list[Question]]:
        most_records = max(self.batch_rows // _ROWS_OF_A_RECORD, 1)
        most_characters = self.batch_rows * _CHARACTERS_OF_A_ROW * _FORWARDS
        window: list[Question] = []
        characters = 0
        for record in islice(read_records(self.path), self.skip, None):
            question = self.columns.question(record)
            window.append(question)
            characters += sum(map(len, (question.fields or {}).values()))
            if len(window) >= most_records or characters >= most_characters:
                yield window
                window, characters = [], 0
        if window:
            yield window
