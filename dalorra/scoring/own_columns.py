"""The records' own columns in the finished file: their names, and their cells as text or JSON.

A column keeps its name. One that is called like a column of the answer, such as the true `label` of
labelled data, becomes `input_label`; and one that is called like that, `input_input_label`.
"""

import base64
import json
import math
from collections.abc import Iterable, Mapping
from datetime import date, time

from dalorra.scoring.answers import ANSWER_COLUMNS, Line
from dalorra.tables import Record, Unreadable

Answered = Iterable[tuple[Record, Line]]
"""Records, each with its answer."""

_RESERVED = frozenset(("row", *ANSWER_COLUMNS))
_PREFIX = "input_"


def output_name(name: str) -> str:
    """The column's name in the finished file; no two have the same."""
    bare = name
    while bare.startswith(_PREFIX):
        bare = bare.removeprefix(_PREFIX)
    return _PREFIX + name if bare in _RESERVED else name


def own_columns(record: Record) -> dict[str, object]:
    """The record's own cells under the names that they have in the finished file."""
    return {output_name(name): value for name, value in record.values.items()}


def plain(value: object) -> object:
    """The value in the words that JSON has: bytes as base64, NaN as null, a date as its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Unreadable):
        return value.raw
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else _text(value)


def as_json(value: object) -> str:
    """The value as JSON that UTF-8 can say."""
    words = plain(value)
    text = json.dumps(words, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can say
        return json.dumps(words)
    return text


def _text(value: object) -> str:
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


class Losses:
    """Columns with cells that stay empty in the finished file, because they cannot be read."""

    def __init__(self) -> None:
        self._problems: dict[str, str] = {}

    def look(self, records: Iterable[Record]) -> None:
        """Remembers the first of each column."""
        for record in records:
            for name, value in record.values.items():
                if isinstance(value, Unreadable) and value.raw is None:
                    self._problems.setdefault(name, f"{record.where}: it {value.problem}")

    def sentences(self) -> list[str]:
        """One for each such column."""
        return [
            f"column {name!r} stays empty where it cannot be read ({problem})"
            for name, problem in self._problems.items()
        ]
