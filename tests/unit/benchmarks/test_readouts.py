"""The benchmark of readouts and scopes of questions: what it keeps of a run, and how it says it."""

import json
from pathlib import Path

import pytest

from benchmarks.readouts import VARIANTS, rendered, run

KINDS = {
    "a": {"trained_on": True, "n": 30, "accuracy": 0.9, "nll": 0.2, "brier": 0.1},
    "b": {"trained_on": True, "n": 10, "accuracy": 0.5, "nll": 1.0, "brier": 0.5},
    "c": {"trained_on": False, "n": 20, "accuracy": 0.25, "nll": 1.5, "brier": 0.8},
}


def finished(folder: Path) -> None:
    """What a run of `dalorra train` leaves, as far as it is read here."""
    (folder / "evaluation").mkdir(parents=True)
    scores = {"kinds": KINDS, "order": {"n": 9, "mean_change": 0.0123, "changed": 0.0}}
    made = {
        "config": {"optimizer": {"steps": 200, "batch_size": 8}, "seed": 1},
        "examples": {"train": 800},
        "hardware": {"processor": "a processor"},
        "versions": {},
    }
    times = {"minutes": 7.4, "wall_minutes": 8.0, "threads": 1}
    (folder / "evaluation/metrics.json").write_text(json.dumps(scores))
    (folder / "run.json").write_text(json.dumps(made))
    (folder / "minutes.json").write_text(json.dumps(times))


def test_a_finished_run_is_read_and_every_question_counts_once(tmp_path: Path):
    for readout, scope in VARIANTS:
        finished(tmp_path / f"{readout}-{scope}")
    lines = [line for variant in VARIANTS for line in run(*variant, tmp_path, {})]
    seen, other = lines[:2]
    assert (seen["kinds"], seen["n"], other["kinds"], other["n"]) == (
        "kinds trained on",
        40,
        "other kinds",
        20,
    )
    assert seen["accuracy"] == pytest.approx(0.8)
    assert seen["nll"] == pytest.approx(0.4)
    assert other["interval"][0] < 0.25 < other["interval"][1]

    text = rendered(lines)
    assert text.count("| 7 | 80.0 (") == len(VARIANTS)
    assert "| 0.400 | 25.0 (" in text
    assert "| 1.500 | 0.012 |" in text
    assert "on 40 questions of kinds that were trained on and 20 of others" in text
