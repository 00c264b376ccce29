"""The folder of a run: what it was asked to do, and where an interrupted one goes on."""

import json
from pathlib import Path
from typing import Any, Final

from transformers.trainer_utils import get_last_checkpoint

from dalorra.errors import ConfigError
from training.config import UNUSED, TrainingConfig
from training.processes import Process
from training.tasks import Task

RUN_FILE: Final = "run.json"
LOG_FILE: Final = "log.jsonl"
CHECKPOINT_FOLDER: Final = "checkpoints"


def prepare_output(config: TrainingConfig, resume: bool) -> str | None:
    """Creates the folder, or finds the checkpoint to go on from and cuts the log to it.

    Of several processes the main one does so, and the others find the same checkpoint.
    """
    output = config.output_dir
    described = output / RUN_FILE
    if not Process.this().is_main:
        return _last_checkpoint(output) if resume else None
    if not described.exists():
        output.mkdir(parents=True, exist_ok=True)
        return None
    if not resume:
        raise ConfigError(f"{output} holds a run already: pass --resume, or another output_dir")
    if json.loads(described.read_text(encoding="utf-8"))["config"] != portable(config):
        raise ConfigError(f"{output} holds a run with another configuration: resume with that one")
    checkpoint = _last_checkpoint(output)
    step = int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0
    log = output / LOG_FILE
    if log.exists():
        lines = log.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        log.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    return checkpoint


def _last_checkpoint(output: Path) -> str | None:
    checkpoints = output / CHECKPOINT_FOLDER
    return get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None


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
