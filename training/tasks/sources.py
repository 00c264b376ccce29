"""Records of a data set, from a file, a folder or the hub, each with where it came from."""

from pathlib import Path

from dalorra.errors import ConfigError
from dalorra.tables import SUFFIXES, Record, read_records
from training.tasks.task import Task


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


def read_file(path: Path) -> list[Record]:
    """All records of a file, by its suffix.

    Raises:
        ConfigError: the file is missing, of another kind, or damaged, or a record of it is.
    """
    records = []
    for record in read_records(path):
        if record.problem is not None:
            raise ConfigError(f"{record.where}: {record.problem}")
        records.append(record)
    if not records:
        raise ConfigError(f"{path} holds no rows, expected at least one")
    return records


def read_hub(task: Task, split: str) -> list[Record]:
    """All records of a split on the Hugging Face hub (needs the `datasets` library).

    Where the hub numbers the classes and the task does not, they have the hub's names.

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
    place, column = f"{hub.id}, split {hub_split}", task.label_column
    names = None if task.label_values else getattr(data.features.get(column), "names", None)
    records = [
        Record(
            f"{place}, row {i}", dict(record) | ({column: names[record[column]]} if names else {})
        )
        for i, record in enumerate(data, start=1)
    ]
    if not records:
        raise ConfigError(f"{place} holds no rows, expected at least one")
    return records
