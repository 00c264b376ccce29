"""How accurate the shipped configs of tasks with many labels are, and how long they train.

    python -m benchmarks.intents CONFIG … --data FOLDER --out FOLDER [--steps 200 800]

Trains every config as `dalorra train` does, selection, novelty, calibration and evaluation
included, and keeps what it scored on examples that chose nothing. Minutes are wall-clock, and those
of the processor divided by the threads: what the run takes where nothing else runs. FOLDER holds
`<task>/<split>.jsonl`; a run that is in the second one already is not repeated.
"""

import json
from pathlib import Path
from typing import Any, Final

from benchmarks.report import arguments, print_table, write_json
from benchmarks.timed_run import timed_run
from dalorra.decision.intervals import binomial_interval
from training.output import LOG_FILE

_KEPT: Final = ("n", "accuracy", "nll", "ece", "ece_by_chance", "auroc_confidence")


def main() -> None:
    """Trains and writes the JSON."""
    parser = arguments(__doc__, "intents")
    parser.add_argument("configs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs="+", help="in place of the config's")
    options = parser.parse_args()
    lines = [
        measured(config, options.data, options.out, steps)
        for config in options.configs
        for steps in options.steps or [None]
    ]
    print_table("Intents", lines, ("config", "steps", "minutes", "accuracy", "nll", "ece"))
    write_json(options.json, lines)


def measured(config: Path, data: Path, out: Path, steps: int | None) -> dict[str, Any]:
    """One run."""
    folder = out / (config.stem if steps is None else f"{config.stem}-{steps}")
    overrides = {"data.source": str(data)}
    if steps is not None:
        overrides |= {"optimizer.steps": str(steps), "evaluation.every": str(steps)}
    run, scores, minutes = timed_run(config, folder, overrides)
    right = round(scores["accuracy"] * scores["n"])
    accept = scores["decisions"]["accept"]
    return {
        "config": config.stem,
        "steps": run["config"]["optimizer"]["steps"],
        "seed": run["config"]["seed"],
        "examples": run["examples"],
        **minutes,
        "training_minutes": _training_minutes(folder),
        **{name: scores[name] for name in _KEPT},
        "interval": binomial_interval(right, scores["n"]),
        "mean_mask_accuracy": scores["mean_mask"]["accuracy"],
        "accepted": accept["share"],
        "accepted_error": accept["error"],
        **({"out_of_scope": scores["out_of_scope"]} if "out_of_scope" in scores else {}),
        "hardware": run["hardware"],
        "versions": run["versions"],
    }


def _training_minutes(folder: Path) -> float:
    """Of the clock, from the first step to the last; the rest prepares, calibrates and scores."""
    logged = [json.loads(line) for line in (folder / LOG_FILE).read_text("utf-8").splitlines()]
    seconds: float = next(line["train_runtime"] for line in logged if "train_runtime" in line)
    return seconds / 60


if __name__ == "__main__":
    main()
