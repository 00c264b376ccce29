"""The folder of a run: what it was asked to do, and where an interrupted one goes on."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout
from transformers.trainer import TRAINER_STATE_NAME as STATE

from dalorra.errors import ConfigError
from training.config import UNUSED, TrainingConfig
from training.processes import Process
from training.tasks import Task

RUN_FILE: Final = "run.json"
LOG_FILE: Final = "log.jsonl"
CHECKPOINT_FOLDER: Final = "checkpoints"
ADAPTER_FOLDER: Final = "adapter"
LOCK_FILE: Final = ".lock"


@contextmanager
def claimed(output: Path) -> Iterator[None]:
    """Makes the folder this process's own in the block; however that ends, the system frees it.

    Of several processes that train together the main one does so for all.

    Raises:
        ConfigError: another run is under way in it.
    """
    if not Process.this().is_main:
        yield
        return
    output.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(output / LOCK_FILE).acquire(blocking=False)
    except Timeout as error:
        raise ConfigError(f"{output} holds a run that is under way") from error
    with lock:
        yield


def prepare_output(config: TrainingConfig, resume: bool) -> str | None:
    """Finds the checkpoint to go on from and cuts the log to it; None: a run from the start.

    A folder with neither a checkpoint nor an adapter has nothing to go on from and nothing to lose:
    what a run that failed left there makes room for the next one, whatever its configuration.

    Of several processes the main one does so, and the others find the same checkpoint.

    Raises:
        ConfigError: it holds a run, and this is not the same one resumed.
    """
    output = config.output_dir
    checkpoint = _last_checkpoint(output)
    if not Process.this().is_main:
        return checkpoint if resume else None
    described = output / RUN_FILE
    if checkpoint is None and not (output / ADAPTER_FOLDER).exists():
        for left in (described, output / LOG_FILE):
            left.unlink(missing_ok=True)
        return None
    if not resume:
        raise ConfigError(f"{output} holds a run already: pass --resume, or another output_dir")
    recorded = json.loads(described.read_text(encoding="utf-8")) if described.exists() else {}
    if recorded.get("config") != portable(config):
        raise ConfigError(f"{output} holds a run with another configuration: resume with that one")
    step = int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0
    log = output / LOG_FILE
    if log.exists():
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        # A kill may have cut the last line.
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        log.write_text("".join(kept), encoding="utf-8")
    return checkpoint


def _last_checkpoint(output: Path) -> str | None:
    """The last one that is whole: a kill may have cut its writing, whose end is the state."""
    whole = [state.parent for state in (output / CHECKPOINT_FOLDER).glob(f"checkpoint-*/{STATE}")]
    last = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    return None if last is None else str(last)


def portable(config: TrainingConfig, *left_out: str) -> dict[str, Any]:
    """What records of a run say of its configuration.

    Without the folders of this machine, settings of the data that are `UNUSED`, the messages of a
    task that has none, and the sections `left_out`.
    """
    unused = {name for name, value in UNUSED.items() if getattr(config.data, name) == value}
    exclude: dict[str, Any] = {"output_dir": True, "data": {"source"} | unused}
    if isinstance(config.task, Task) and not config.task.messages:
        exclude["task"] = {"messages"}
    return config.model_dump(mode="json", exclude=exclude | dict.fromkeys(left_out, True))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Readable JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
