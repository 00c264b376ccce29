"""The experiments that ship are those whose results are stored."""

import json
from pathlib import Path

from training.experiments import experiments, load_experiment
from training.experiments.earlier import RESULT_FILE
from training.experiments.runner import config_digest

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "experiments"


def test_every_stored_result_is_of_the_configuration_that_would_be_run_now():
    stored = {
        path: json.loads(path.read_text(encoding="utf-8"))["config_digest"]
        for path in RESULTS.rglob(RESULT_FILE)
    }
    wanted = {}
    for experiment in map(load_experiment, experiments()):
        for run in experiment.runs():
            folder = RESULTS / experiment.name
            wanted[folder / run.key / RESULT_FILE] = config_digest(run.config(folder, {}))
    assert stored
    assert {path: wanted.get(path) for path in stored} == stored
