"""The finished file, as JSON lines or parquet: each record of the input with its answer, in order.

A record's own columns keep their names. One that is called like a column of the answer, such as the
true `label` of labelled data, becomes `input_label`.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dalorra.errors import ConfigError
from dalorra.scoring.answers import ANSWER_COLUMNS
from dalorra.tables import Record

if TYPE_CHECKING:
    import pyarrow

RESERVED = frozenset(("row", *ANSWER_COLUMNS))
SUFFIXES = (".jsonl", ".parquet")

_GROUP_RECORDS = 16_384  # of one row group of a parquet file


class Output(Protocol):
    """A form that the finished file can have."""

    def foresee(self, records: Sequence[Record]) -> None:
        """Sees all records of the input, part by part, before anything is answered.

        Raises:
            ConfigError: their own columns do not fit into a file of this form.
        """

    def write(self, path: Path, lines: Iterable[Mapping[str, object]]) -> None:
        """Writes the whole file; each line is a record's own columns and its answer."""


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
        return JsonLines()
    if path.suffix != ".parquet":
        raise ConfigError(f"--out {path} must end in {' or '.join(SUFFIXES)}")
    if find_spec("pyarrow") is None:
        raise ConfigError(f"{path} needs pyarrow: pip install pyarrow, or write a .jsonl file")
    return Parquet(labels, source)


def own_columns(record: Record) -> dict[str, object]:
    """The record's own columns under the names that they have in the output.

    Raises:
        ConfigError: two of them would have the same name.
    """
    named = {_output_name(name): value for name, value in record.values.items()}
    if len(named) < len(record.values):
        twice = next(name for name in record.values if f"input_{name}" in record.values)
        raise ConfigError(
            f"{record.where}: columns {twice!r} and 'input_{twice}' would have one name in the "
            "output: rename one, or leave your own columns out with --no-columns"
        )
    return named


def _output_name(name: str) -> str:
    return f"input_{name}" if name in RESERVED else name


class JsonLines:
    """One object in each line. What JSON has no word for is written as text, NaN as null."""

    def foresee(self, records: Sequence[Record]) -> None:
        for record in records:
            try:
                _json_bytes(own_columns(record))
            except TypeError as error:
                raise ConfigError(
                    f"{record.where}: {error}: write a .parquet file, or leave your own columns "
                    "out with --no-columns"
                ) from error

    def write(self, path: Path, lines: Iterable[Mapping[str, object]]) -> None:
        with path.open("wb") as file:
            file.writelines(_json_bytes(line) + b"\n" for line in lines)


def _json_bytes(line: Mapping[str, object]) -> bytes:
    try:
        text = json.dumps(line, ensure_ascii=False, allow_nan=False, default=_as_text)
    except ValueError:  # NaN or infinity
        text = json.dumps(_without_nan(line), ensure_ascii=False, default=_as_text)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can say
        return json.dumps(json.loads(text)).encode()


def _as_text(value: object) -> str:
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    raise TypeError(f"JSON cannot hold {type(value).__name__}")


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list | tuple) else value


class Parquet:
    """One table. The records' own columns have the types of a parquet input, or are looked at.

    Args:
        labels: names of the adapter's labels.
        source: the input, where the records' own columns are wanted.
    """

    def __init__(self, labels: Sequence[str], source: Path | None) -> None:
        self._labels = labels
        self._typed = source if source and source.suffix == ".parquet" else None
        self._seen: pyarrow.Schema | None = None

    def foresee(self, records: Sequence[Record]) -> None:
        import pyarrow as pa

        own = list(map(own_columns, records))
        if self._typed:
            return
        names = dict.fromkeys(name for columns in own for name in columns)
        for name in names:
            try:
                column = pa.array([columns.get(name) for columns in own])
                here = pa.schema([(name, column.type)])
                seen = [self._seen, here] if self._seen else [here]
                self._seen = pa.unify_schemas(seen, promote_options="permissive")
            except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
                raise ConfigError(
                    f"column {name!r} has no one type that parquet could hold ({error}): write a "
                    ".jsonl file, or leave your own columns out with --no-columns"
                ) from error

    def write(self, path: Path, lines: Iterable[Mapping[str, object]]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        schema = self._schema()
        remaining = iter(lines)
        with parquet.ParquetWriter(path, schema) as writer:
            while group := list(islice(remaining, _GROUP_RECORDS)):
                writer.write_table(pa.Table.from_pylist(group, schema))

    def _schema(self) -> "pyarrow.Schema":
        import pyarrow as pa
        from pyarrow import parquet

        own = parquet.read_schema(self._typed) if self._typed else self._seen or ()
        types = {
            **dict.fromkeys(("label", "decision", "reason", "error"), pa.string()),
            "truncated": pa.bool_(),
            "probabilities": pa.struct([(name, pa.float64()) for name in self._labels]),
        }
        return pa.schema(
            [
                pa.field("row", pa.int64()),
                *(field.with_name(_output_name(field.name)) for field in own),
                *(pa.field(name, types.get(name, pa.float64())) for name in ANSWER_COLUMNS),
            ]
        )
