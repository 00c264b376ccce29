"""Records of a table in a file, one after the other: a file may be larger than the memory.

What is wrong with the file as a whole is raised. What is wrong with one record comes with it, and
what is wrong with one cell is in its place, so that whoever reads decides whether the others are
still wanted. Every kind of file keeps the same rules:

* A cell may be of any length. An empty one, `""` in CSV, is the empty text, and its record stays.
* A line with nothing on it holds no record: in CSV an empty one, in JSONL one of white space.
* Names are unique. A header that has one twice is refused; a JSON object that has, is a record
  that cannot be read, or a cell where it is nested.
* A cell that no Python value stands for, or no UTF-8 text, or that is nested deeper than
  `MAX_DEPTH`, is `Unreadable`. It harms those alone that ask for it.
* A quote that is not closed, or a JSON file with an error in it, leaves no records to speak of, and
  the file is refused.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalorra.errors import ConfigError

if TYPE_CHECKING:
    from pyarrow import parquet

MAX_DEPTH = 64
"""Lists and objects inside each other that a cell may have."""

_MAX_DIGITS = 4300  # of an integer: Python refuses to read more
_MAX_CELL = 2**31 - 1  # characters: the most that the csv module can be told on every platform
_READ_RECORDS = 1024  # of a parquet file that are held at a time
_NO_TEXT = "holds half of a surrogate pair, or bytes that are not UTF-8 text"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands in a record's values for a cell that cannot be used.

    Attributes:
        problem: what is wrong with it, for a sentence that begins with the column.
        raw: a text with half of a surrogate pair, or with one for each byte that is not UTF-8.
    """

    problem: str
    raw: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One record and its place: `train.jsonl, row 3`.

    Attributes:
        where: the place, for messages.
        values: column → value; empty when the record cannot be read.
        number: from 1. In JSONL it is the line's, and in CSV the header is not counted.
        problem: what is wrong with it; None when it can be read.
    """

    where: str
    values: Mapping[str, object] = field(default_factory=dict)
    number: int = 0
    problem: str | None = None


def read_records(path: Path) -> Iterator[Record]:
    """The records of a `.jsonl`, `.json`, `.csv` or `.parquet` file, in order.

    A `.json` file is read whole, the others a little at a time.

    Raises:
        ConfigError: the file is missing, of another kind, or damaged.
    """
    if path.suffix not in READERS:
        raise ConfigError(f"{path} must end in one of {', '.join(SUFFIXES)}")
    try:
        if path.suffix != ".parquet":
            with path.open("rb") as file:
                if file.read(2) in _UTF16:
                    raise ConfigError(f"{path} is UTF-16: save it as UTF-8")
        yield from READERS[path.suffix](path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or _brief(error)}") from error


# --- JSON ---


def _read_jsonl(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not text.strip():
                continue
            try:
                value = _parsed(text)
            except (ValueError, RecursionError) as error:
                problem = f"not JSON ({_fault(error, text)}), expected one object per line"
                yield Record(f"{path}, row {number}", number=number, problem=problem)
            else:
                yield _json_record(path, number, value)


def _read_json(path: Path) -> Iterator[Record]:
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        values = _parsed(text)
    except (ValueError, RecursionError) as error:
        fault = _fault(error, text)
        raise ConfigError(f"{path}: not JSON ({fault}), expected a list of objects") from error
    if not isinstance(values, list):
        raise ConfigError(f"{path}: {_kind(values)}, expected a list of objects")
    for number, value in enumerate(values, start=1):
        yield _json_record(path, number, value)


def _parsed(text: bytes) -> Any:
    """What JSON says. Bytes that are no UTF-8 become halves of surrogate pairs: see `_cell`."""
    decoded = text.decode(errors="surrogateescape")
    return json.loads(decoded, object_pairs_hook=_json_object, parse_int=_integer)


def _json_object(pairs: list[tuple[str, object]]) -> dict[str, object] | Unreadable:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    return Unreadable(f"has the key {_repeated(name for name, _ in pairs)!r} twice")


def _integer(digits: str) -> int | Unreadable:
    if len(digits) <= _MAX_DIGITS:
        return int(digits)
    return Unreadable(f"is a number of {len(digits)} digits")


def _json_record(path: Path, number: int, value: object) -> Record:
    where = f"{path}, row {number}"
    if isinstance(value, dict):
        return _record(where, number, map(spelled, value), value.values())
    problem = value.problem if isinstance(value, Unreadable) else None
    problem = problem or f"{_kind(value)}, expected an object of columns"
    return Record(where, number=number, problem=problem)


def _kind(value: object) -> str:
    return "an object" if isinstance(value, dict | Unreadable) else f"a {type(value).__name__}"


def _fault(error: ValueError | RecursionError, text: bytes) -> str:
    try:
        text.decode()
    except UnicodeDecodeError as undecodable:
        return f"byte {undecodable.start} is not UTF-8 text"
    if isinstance(error, json.JSONDecodeError):
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        return f"{error.msg} at {line}column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


# --- CSV ---


def _read_csv(path: Path) -> Iterator[Record]:
    csv.field_size_limit(_MAX_CELL)  # the module's own is 131,072, for every reader of the process
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        rows = (cells for cells in reader if cells)
        try:
            header = _header(path, next(rows, []))
            for number, cells in enumerate(rows, start=1):
                where = f"{path}, row {number}"
                if len(cells) == len(header):
                    yield _record(where, number, header, cells)
                else:
                    problem = (
                        f"{len(cells)} cells, expected {len(header)} as in the header; "
                        "quote texts that contain commas"
                    )
                    yield Record(where, number=number, problem=problem)
        except csv.Error as error:
            raise ConfigError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


# --- Parquet ---


def _read_parquet(path: Path) -> Iterator[Record]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(
            f"{path} needs the pyarrow library: pip install 'dalorra-service[training]'"
        ) from error
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
    except OSError:
        raise
    except Exception as error:  # as many kinds as there are ways to damage a file
        raise ConfigError(f"{path}: not a parquet file ({_brief(error)})") from error
    with file:
        header = _header(path, names)
        columns = [_parquet_cells(file, name) for name in names]
        ended = Unreadable("ends before the table does")
        rows = file.metadata.num_rows
        for number in range(1, rows + 1):
            cells = [next(column, ended) for column in columns]
            if cells and all(cell is ended for cell in cells):
                raise ConfigError(f"{path}: ends before row {number} of {rows}")
            yield _record(f"{path}, row {number}", number, header, cells)


def _parquet_cells(file: "parquet.ParquetFile", name: str) -> Iterator[object]:
    """One column's cells, without the others, so that none of them can stop it."""
    try:
        for batch in file.iter_batches(_READ_RECORDS, columns=[name]):
            column = batch.column(batch.schema.get_field_index(name))
            try:
                cells = column.to_pylist()
            except Exception:  # noqa: BLE001 - as many kinds as Arrow has types: look at each cell
                cells = map(_python_value, column)
            yield from cells
    except Exception as error:  # noqa: BLE001 - a page that is damaged, or packed in an unknown way
        while True:
            yield Unreadable(f"cannot be read ({_brief(error)})")


def _python_value(scalar: Any) -> object:
    try:
        return scalar.as_py()
    except Exception as error:  # noqa: BLE001 - as many kinds as Arrow has types
        return Unreadable(f"holds what Python has no value for ({_brief(error)})")


# --- what they share ---


def _record(where: str, number: int, names: Iterable[str], cells: Iterable[object]) -> Record:
    names = list(names)
    values = dict(zip(names, map(_cell, cells), strict=True))
    if len(values) == len(names):
        return Record(where, values, number)
    return Record(where, number=number, problem=f"has the key {_repeated(names)!r} twice")


def _header(path: Path, names: Sequence[str]) -> list[str]:
    header = list(map(spelled, names))
    if len(set(header)) < len(header):
        raise ConfigError(f"{path}: the column name {_repeated(header)!r} occurs twice")
    return header


def _repeated(names: Iterable[str]) -> str:
    return Counter(names).most_common(1)[0][0]


def _cell(value: object) -> object:
    """The value, unless nothing more can be done with it."""
    if isinstance(value, str):
        return Unreadable(_NO_TEXT, value) if _undecodable(value) else value
    if not isinstance(value, list | dict):
        return value
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        level = [item for whole in level for item in _items(whole)]
        bad = next((item for item in level if isinstance(item, Unreadable)), None)
        if bad is not None:
            return bad
        if not level:
            return value
    return Unreadable(f"is nested more than {MAX_DEPTH} deep")


def _items(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def spelled(text: str) -> str:
    r"""The text, with what UTF-8 cannot say spelled out: `\xff`, `\ud83d`."""
    try:
        return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode()


def _undecodable(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _brief(error: Exception) -> str:
    """The first line of what a library says."""
    return next(iter(str(error).splitlines()), type(error).__name__)


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
SUFFIXES = tuple(READERS)
