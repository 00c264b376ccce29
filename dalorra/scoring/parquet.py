"""The finished file as one parquet table.

The own columns of a parquet input are copied as they are, without a detour through Python's values.
Those of other files get the type that all of their cells have. A column that has no such type, such
as a number here and a list there, is written as JSON text.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from dalorra.scoring.answers import ANSWER_COLUMNS, Line
from dalorra.scoring.own_columns import Answered, Losses, as_json, output_name, own_columns
from dalorra.tables import Record, Unreadable, read_records, spelled

_GROUP_RECORDS = 16_384  # of one row group
_ROW = pa.field("row", pa.int64())


class Copied:
    """The own columns of a parquet file, with the answers beside them.

    Args:
        labels: names of the adapter's labels.
        source: that file.
    """

    def __init__(self, labels: Sequence[str], source: Path) -> None:
        self._answers = _answer_fields(labels)
        self._source = source
        self._names: list[str] = []

    def foresee(self, records: Sequence[Record]) -> None:
        """Nothing: Arrow reads what Python has no values for."""

    def settle(self) -> list[str]:
        sentences = []
        with parquet.ParquetFile(self._source) as file:
            for name in file.schema_arrow.names:
                try:
                    for _ in file.iter_batches(_GROUP_RECORDS, columns=[name]):
                        pass
                except Exception as error:  # noqa: BLE001 - a damaged page, an unknown packing
                    reason = str(error).partition("\n")[0]
                    sentences.append(f"column {name!r} is left out: it cannot be read ({reason})")
                else:
                    self._names.append(name)
        return sentences

    def write(self, path: Path, answered: Answered) -> None:
        remaining = iter(answered)
        with parquet.ParquetFile(self._source) as file:
            own = [file.schema_arrow.field(name) for name in self._names]
            renamed = [field.with_name(output_name(spelled(field.name))) for field in own]
            schema = pa.schema([_ROW, *renamed, *self._answers])
            with parquet.ParquetWriter(path, schema) as writer:
                for batch in file.iter_batches(_GROUP_RECORDS, columns=self._names):
                    lines = [line for _, line in islice(remaining, batch.num_rows)]
                    rows, *answers = _arrays(lines, [_ROW, *self._answers])
                    columns = [batch.column(batch.schema.get_field_index(f.name)) for f in own]
                    writer.write_batch(
                        pa.RecordBatch.from_arrays([rows, *columns, *answers], schema=schema)
                    )
        next(remaining, None)  # lets whoever pairs records and answers see that both have ended


class Inferred:
    """The own columns of other files, whose types are looked for.

    Args:
        labels: names of the adapter's labels.
        source: the file, where its own columns are wanted.
    """

    def __init__(self, labels: Sequence[str], source: Path | None) -> None:
        self._answers = _answer_fields(labels)
        self._source = source
        self._types: dict[str, pa.DataType] = {}
        self._widened: set[str] = set()
        self._as_json: set[str] = set()
        self._losses = Losses()

    def foresee(self, records: Sequence[Record]) -> None:
        if self._source is None:
            return
        self._losses.look(records)
        for name, cells in _columns(records).items():
            try:
                here = pa.array(map(_cell, cells)).type
                seen = self._types.get(name, here)
                self._types[name] = _unified(seen, here)
            except (pa.ArrowException, OverflowError, ValueError, TypeError):
                self._types.setdefault(name, pa.null())
                self._as_json.add(name)
            else:
                if {seen, here} - {self._types[name], pa.null()}:
                    self._widened.add(name)

    def settle(self) -> list[str]:
        for group in self._groups() if self._widened - self._as_json else ():
            for name in self._widened - self._as_json:
                if not _holds(self._types[name], [_cell(own.get(name)) for own in group]):
                    self._as_json.add(name)
        for name, type_ in self._types.items():
            if not _writable(type_):
                self._as_json.add(name)
        return [
            f"column {name!r} has no one type that parquet could hold: it is written as JSON text"
            for name in self._types
            if name in self._as_json
        ] + self._losses.sentences()

    def write(self, path: Path, answered: Answered) -> None:
        own = [
            pa.field(name, pa.string() if name in self._as_json else type_)
            for name, type_ in self._types.items()
        ]
        fields = [_ROW, *own, *self._answers]
        remaining = iter(answered)
        with parquet.ParquetWriter(path, pa.schema(fields)) as writer:
            while group := list(islice(remaining, _GROUP_RECORDS)):
                lines = [{**self._own(record), **line} for record, line in group]
                arrays = _arrays(lines, fields)
                writer.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)))

    def _own(self, record: Record) -> dict[str, object]:
        if self._source is None:
            return {}
        return {
            name: None
            if value is None
            else as_json(value)
            if name in self._as_json
            else _cell(value)
            for name, value in own_columns(record).items()
        }

    def _groups(self) -> Iterator[list[dict[str, object]]]:
        if self._source is not None:
            records = map(own_columns, read_records(self._source))
            while group := list(islice(records, _GROUP_RECORDS)):
                yield group


def _answer_fields(labels: Sequence[str]) -> list[pa.Field]:
    types = {
        **dict.fromkeys(("label", "decision", "reason", "error"), pa.string()),
        "truncated": pa.bool_(),
        "probabilities": pa.struct([(name, pa.float64()) for name in labels]),
    }
    return [pa.field(name, types.get(name, pa.float64())) for name in ANSWER_COLUMNS]


def _arrays(lines: Sequence[Line], fields: Sequence[pa.Field]) -> list[pa.Array]:
    return [pa.array([line.get(field.name) for line in lines], field.type) for field in fields]


def _columns(records: Sequence[Record]) -> Mapping[str, list[object]]:
    own = list(map(own_columns, records))
    names = dict.fromkeys(name for columns in own for name in columns)
    return {name: [columns.get(name) for columns in own] for name in names}


def _cell(value: object) -> object:
    if isinstance(value, Unreadable):
        return None if value.raw is None else spelled(value.raw)
    return value


def _unified(seen: pa.DataType, here: pa.DataType) -> pa.DataType:
    schemas = [pa.schema([("column", type_)]) for type_ in (seen, here)]
    return pa.unify_schemas(schemas, promote_options="permissive").field("column").type


def _holds(type_: pa.DataType, cells: Any) -> bool:
    try:
        pa.array(cells, type_)
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        return False
    return True


def _writable(type_: pa.DataType) -> bool:
    """Whether parquet has the type: an object without keys, for one, it has not."""
    try:
        parquet.ParquetWriter(pa.BufferOutputStream(), pa.schema([("column", type_)])).close()
    except pa.ArrowException:
        return False
    return True
