"""Records of a file of inputs, one after the other: a file may be larger than the memory.

What is wrong with the file as a whole is raised. What is wrong with one record comes with it, so
that whoever reads decides whether the others are still wanted.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dalorra.errors import ConfigError

_READ_RECORDS = 1024  # of a parquet file that are held at a time


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
        yield from READERS[path.suffix](path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8"
        ) from error


def _read_jsonl(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not text.strip():  # an empty line holds no record
                continue
            where = f"{path}, row {number}"
            try:
                values = json.loads(text.decode())
            except UnicodeDecodeError as error:
                problem = f"is not UTF-8 text (byte {error.start} of the line): save it as UTF-8"
                yield Record(where, number=number, problem=problem)
            except (ValueError, RecursionError) as error:
                problem = f"not JSON ({_fault(error)}), expected one object per line"
                yield Record(where, number=number, problem=problem)
            else:
                yield _object(where, number, values)


def _fault(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error)  # a number of thousands of digits, a thousand brackets


def _read_json(path: Path) -> Iterator[Record]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not JSON ({error}), expected a list of objects") from error
    if not isinstance(values, list):
        raise ConfigError(f"{path}: a {type(values).__name__}, expected a list of objects")
    for number, value in enumerate(values, start=1):
        yield _object(f"{path}, row {number}", number, value)


def _read_csv(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise ConfigError(f"{path}: a column name occurs twice in the header")
            for number, cells in enumerate((c for c in reader if c), start=1):
                where = f"{path}, row {number}"
                if len(cells) == len(header):
                    yield Record(where, dict(zip(header, cells, strict=True)), number)
                else:
                    problem = (
                        f"{len(cells)} cells, expected {len(header)} as in the header; "
                        "quote texts that contain commas"
                    )
                    yield Record(where, number=number, problem=problem)
        except csv.Error as error:
            raise ConfigError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def _read_parquet(path: Path) -> Iterator[Record]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(
            f"{path} needs the pyarrow library: pip install 'dalorra-service[training]'"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(_READ_RECORDS):
                for values in batch.to_pylist():
                    number += 1
                    yield Record(f"{path}, row {number}", values, number)
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(f"{path}: not a parquet file ({error})") from error


def _object(where: str, number: int, values: object) -> Record:
    if isinstance(values, dict):
        return Record(where, values, number)
    problem = f"a {type(values).__name__}, expected an object of columns"
    return Record(where, number=number, problem=problem)


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
SUFFIXES = tuple(READERS)
