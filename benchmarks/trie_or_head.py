"""Labels by a trie and by a class head: what each learns from n examples a label.

    python -m benchmarks.trie_or_head --data FOLDER --examples 5 20 70 --json OUT

The first intents of clinc150, few enough for both. FOLDER holds `clinc150/train.jsonl`: 30 texts of
each intent are scored, n others are trained on, for the same number of steps. Minutes are those of
the processor in training, divided by the threads.
"""

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch

from benchmarks.report import arguments, print_table, write_json
from dalorra.decision.intervals import binomial_interval
from dalorra.labels import LabelsBy
from training.answers import answer
from training.config import TrainingConfig
from training.evaluate import score
from training.run import Run
from training.tasks import TASKS, Example, Task, load_examples

SCORED: Final = 30
"""Texts of each label."""

CLINC: Final = TASKS["clinc150"]
WAYS: Final[tuple[LabelsBy, ...]] = ("trie", "head")
MODULES: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main() -> None:
    """Trains and writes the JSON."""
    parser = arguments(__doc__, "trie_or_head")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--labels", type=int, default=15)
    parser.add_argument("--examples", type=int, nargs="+", default=[5, 20, 70])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    options = parser.parse_args()
    lines = list(measure(options))
    shown = ("labels_by", "examples", "seed", "untrained", "accuracy", "nll", "ece", "minutes")
    print_table(f"{options.labels} labels, {options.steps} steps", lines, shown)
    write_json(options.json, lines)


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One run for each way, number and seed."""
    names = list(CLINC.labels)[: options.labels]
    by_label: dict[str, list[Example]] = defaultdict(list)
    for example in load_examples(CLINC, "train", options.data):
        by_label[example.label].append(example)
    for seed in options.seeds:
        drawn = [random.Random(seed).sample(by_label[name], len(by_label[name])) for name in names]
        scored = [example for of_label in drawn for example in of_label[:SCORED]]
        for count in options.examples:
            trained = [e for of_label in drawn for e in of_label[SCORED : SCORED + count]]
            for way in WAYS:
                found = _run(way, names, (trained, scored), options.steps, seed)
                yield {"labels_by": way, "labels": len(names), "examples": count, **found}


def _run(
    way: LabelsBy,
    names: Sequence[str],
    parts: tuple[Sequence[Example], Sequence[Example]],
    steps: int,
    seed: int,
) -> dict[str, Any]:
    """Trains on the first part and scores the second, before and afterwards."""
    labels = {name: CLINC.labels[name] for name in names}
    changes = {"labels": labels, "labels_by": way, "out_of_scope": ()}
    task = Task.model_validate({**CLINC.model_dump(), **changes})
    with TemporaryDirectory() as folder:
        data = Path(folder) / CLINC.name
        data.mkdir()
        for split, part in zip(("train", "validation"), parts, strict=True):
            lines = (json.dumps({**e.input, "intent": e.label}) + "\n" for e in part)
            (data / f"{split}.jsonl").write_text("".join(lines), "utf-8")
        content = {
            "name": way,
            "output_dir": folder,
            "task": task,
            "seed": seed,
            "data": {"source": folder, "calibration": 0, "evaluation_split": "validation"},
            "adapter": {"modules": MODULES, "max_tokens": 128},
            "optimizer": {"steps": steps, "batch_size": 16, "learning_rate": 2e-3},
            "evaluation": {"every": steps, "keep_best": False},
        }
        run = Run(TrainingConfig.model_validate(content))
        before = _scores(run)
        began = time.process_time()
        run.fit()
        minutes = (time.process_time() - began) / 60 / torch.get_num_threads()
        after = _scores(run)
    return {
        "seed": seed,
        "steps": steps,
        "nodes": len(run.tokenizer.trie.nodes) if run.tokenizer.trie else 0,
        "minutes": minutes,
        "n": len(run.data.test),
        "untrained": before["accuracy"],
        "interval": binomial_interval(round(after["accuracy"] * len(parts[1])), len(parts[1])),
        **{name: after[name] for name in ("accuracy", "nll", "ece", "ece_by_chance")},
    }


def _scores(run: Run) -> dict[str, Any]:
    answers = answer(run.evaluable(), run.data.test, mean_mask=False).sampled
    return score(answers, [example.label for example in run.data.test])


if __name__ == "__main__":
    main()
