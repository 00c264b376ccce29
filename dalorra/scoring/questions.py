"""What a file asks: the template's fields of each of its records, a window of them at a time."""

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dalorra.errors import ConfigError, InputError
from dalorra.prompts import PromptFormat
from dalorra.tables import Record, read_records

WINDOW_RECORDS = 512
"""Records that are answered and written down together."""


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
            raise InputError(f"no column {column!r} for the field {field!r}; it has {known}")
        value = record.values[column]
        if not isinstance(value, str):
            raise InputError(f"column {column!r} holds {reprlib.repr(value)}, expected text")
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can say what no text can
            raise InputError(f"column {column!r} holds half of a surrogate pair") from None
        return value


@dataclass(frozen=True, slots=True)
class Questions:
    """The windows of a file, from some record on. Can be iterated again, and pickled.

    Attributes:
        path: the file.
        columns: where its records hold the fields.
        skip: records that are left out, from the first.
        window_records: size of a window.
    """

    path: Path
    columns: Columns
    skip: int = 0
    window_records: int = WINDOW_RECORDS

    def __iter__(self) -> Iterator[list[Question]]:
        records = islice(read_records(self.path), self.skip, None)
        while window := list(map(self.columns.question, islice(records, self.window_records))):
            yield window
