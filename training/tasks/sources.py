"""Rows of a data set, from a file, a folder or the hub, each with where it came from."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dalorra.errors import ConfigError
from training.tasks.task import Task

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Row:
    """One row and its place: `train.jsonl, row 3`, rows counted from 1.

    In JSONL a row's number is its line's, and in CSV the header is not counted.
    """

    where: str
    values: Mapping[str, object]


def find_file(folder: Path, task: Task, split: str) -> Path:
    """The one file of a split: `<name>/<split>`, the task's own path for it, or `<split>`.

    Raises:
        ConfigError: none is there, or one stem has two suffixes.
    """
    stems = [f"{task.name}/{split}", split]
    if split in task.files:
        stems.insert(1, task.files[split])
    for stem in stems:
        found = [path for s in SUFFIXES if (path := folder / f"{stem}{s}").is_file()]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ConfigError(f"{found[0].parent} holds {names}: keep one of them")
        if found:
            return found[0]
    present = sorted(p.name for p in (folder / task.name).glob("*") if p.suffix in SUFFIXES)
    raise ConfigError(
        f"{folder} has no {stems[0]}{SUFFIXES[0]} for the task {task.name!r}"
        + (f"; {task.name} holds {', '.join(present)}" if present else "")
    )


def read_file(path: Path) -> list[Row]:
    """All rows of a file, by its suffix.

    Raises:
        ConfigError: the file is missing, of another kind, or damaged.
    """
    readers = {
        ".jsonl": _read_jsonl,
        ".json": _read_json,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    if path.suffix not in readers:
        raise ConfigError(f"{path} must end in one of {', '.join(SUFFIXES)}")
    try:
        rows = list(readers[path.suffix](path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8"
        ) from error
    if not rows:
        raise ConfigError(f"{path} holds no rows, expected at least one")
    return rows


def read_hub(task: Task, split: str) -> list[Row]:
    """All rows of a split on the Hugging Face hub (needs the `datasets` library).

    Raises:
        ConfigError: the task names no data set, or it cannot be had.
    """
    if task.hub is None:
        raise ConfigError(f"task {task.name!r} names no hub data set: give a file or a folder")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ConfigError(
            "data from the hub need the datasets library: pip install 'dalorra-service[training]'"
        ) from error
    hub, hub_split = task.hub, task.hub.splits.get(split, split)
    try:
        data = load_dataset(hub.id, hub.config, split=hub_split, revision=hub.revision)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"split {hub_split!r} of {hub.id} cannot be had from the hub ({error}): "
            "check the connection and the name, or give a local folder"
        ) from error
    place = f"{hub.id}, split {hub_split}"
    rows = [Row(f"{place}, row {i}", dict(row)) for i, row in enumerate(data, start=1)]
    if not rows:
        raise ConfigError(f"{place} holds no rows, expected at least one")
    return rows


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():  # an empty line holds no row
                continue
            where = f"{path}, row {number}"
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError(
                    f"{where}: not JSON ({error.msg} at column {error.colno}), "
                    "expected one object per line"
                ) from error
            yield _object(where, values)


def _read_json(path: Path) -> Iterator[Row]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not JSON ({error}), expected a list of objects") from error
    if not isinstance(values, list):
        raise ConfigError(f"{path}: a {type(values).__name__}, expected a list of objects")
    for number, value in enumerate(values, start=1):
        yield _object(f"{path}, row {number}", value)


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise ConfigError(f"{path}: a column name occurs twice in the header")
            for number, cells in enumerate((c for c in reader if c), start=1):
                where = f"{path}, row {number}"
                if len(cells) != len(header):
                    raise ConfigError(
                        f"{where}: {len(cells)} cells, expected {len(header)} as in the header; "
                        "quote texts that contain commas"
                    )
                yield Row(where, dict(zip(header, cells, strict=True)))
        except csv.Error as error:
            raise ConfigError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(
            f"{path} needs the pyarrow library: pip install 'dalorra-service[training]'"
        ) from error
    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(f"{path}: not a parquet file ({error})") from error
    for number, values in enumerate(table.to_pylist(), start=1):
        yield Row(f"{path}, row {number}", values)


def _object(where: str, values: object) -> Row:
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: a {type(values).__name__}, expected an object of columns")
    return Row(where, values)
