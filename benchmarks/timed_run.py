"""A training run of a benchmark, from a config to its scores, and how long all of it took."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from training.evaluate import METRICS_FILE
from training.output import RUN_FILE
from training.run import EVALUATION_FOLDER, train

_TIMES: Final = "minutes.json"


class TimedRun(NamedTuple):
    """What a run left.

    Attributes:
        made: of `run.json`.
        scores: of the evaluation.
        minutes: `wall_minutes` of the clock, and `minutes` of the processor divided by the threads:
            what the run takes where nothing else runs.
    """

    made: dict[str, Any]
    scores: dict[str, Any]
    minutes: dict[str, float]


def timed_run(config: Path, folder: Path, overrides: Mapping[str, str]) -> TimedRun:
    """Trains as `dalorra train` does; a run that is in the folder already is not repeated.

    Args:
        config: of the run.
        folder: that it writes into.
        overrides: see `read_config`.
    """
    times = folder / _TIMES
    if not times.exists():
        began, began_cpu = time.perf_counter(), time.process_time()
        train(config, overrides={**overrides, "output_dir": str(folder)})
        spent = {
            "wall_minutes": (time.perf_counter() - began) / 60,
            "minutes": (time.process_time() - began_cpu) / 60 / torch.get_num_threads(),
        }
        times.write_text(json.dumps(spent), "utf-8")
    files = (folder / RUN_FILE, folder / EVALUATION_FOLDER / METRICS_FILE, times)
    return TimedRun(*(json.loads(file.read_text("utf-8")) for file in files))
