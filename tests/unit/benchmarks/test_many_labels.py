"""The benchmarks of tasks with many labels: their costs, what rejects, and the rendered part."""

import argparse
import json

import numpy as np
import pytest

from benchmarks.many_labels import measure, trie_of
from benchmarks.many_labels_section import section
from benchmarks.out_of_scope import OUTSIDE, Contender, judged
from dalorra.decision.predictive import Prediction
from tests.tiny import tiny_base
from training.tasks import Example


def test_every_way_is_timed_on_the_same_prompts():
    options = argparse.Namespace(labels=[2, 5], tokens=12, samples=2, batch=[1], repeats=2)
    lines = list(measure(tiny_base(), options))
    assert [line["plan"] for line in lines] == ["lora", "tokens", "head", "trie"] * 2
    assert [line["labels"] for line in lines] == [2] * 4 + [5] * 4
    assert all(line["ratio_to_single"] > 0.0 for line in lines)
    assert lines[0]["nodes"] == len(trie_of(tiny_base(), 2).nodes) < lines[4]["nodes"]


def answered(name: str, separated: float, n: int = 1500) -> tuple[Contender, list[Example]]:
    """A fifth of the texts is out of scope, and less sure by so much; 1 in 80 others is wrong."""
    rng = np.random.default_rng(0)
    examples, predictions = [], {}
    for i in range(n):
        outside = i % 5 == 0
        sure = float(rng.uniform(0.9, 1.0) - separated * outside)
        label = OUTSIDE if outside else "no" if i % 100 == 1 else "yes"
        examples.append(Example({"text": f"text {i}"}, label))
        predictions[f"text {i}"] = Prediction(
            "yes", sure, 0.0, {"no": 1 - sure, "yes": sure}, 0.0, 0.0, samples=10
        )
    return Contender(name, ("no", "yes"), predictions), examples


def test_what_tells_them_apart_accepts_little_that_is_out_of_scope():
    lines = {}
    for separated in (0.0, 0.5):
        contender, examples = answered("any", separated)
        lines[separated] = judged(contender, examples, 0.18, seed=0)
    assert lines[0.5]["auroc"] > 0.99
    assert lines[0.0]["auroc"] == pytest.approx(0.5, abs=0.1)
    assert lines[0.5]["accepted"] > 0.6
    assert lines[0.5]["accepted_outside"] < 0.2
    assert lines[0.5]["error"] <= 0.06
    assert lines[0.0]["accepted"] == 0.0, "nothing can be promised"
    assert lines[0.5]["outside"] == 300
    assert lines[0.5]["accuracy"] == pytest.approx(0.9875, abs=0.001)


def test_the_part_says_what_was_measured_and_leaves_out_what_was_not(tmp_path):
    assert section(tmp_path) == "## Many labels\n"
    contender, examples = answered("policy", 0.5)
    line = judged(contender, examples, 0.18, seed=0)
    (tmp_path / "out_of_scope.json").write_text(json.dumps([line]))
    ranked = {
        "task": "toy", "labels": 77, "n": 1000, "errors": 90, "measure": "1 − p",
        "auroc": 0.87, "interval": [0.84, 0.9],
    }  # fmt: skip
    honest = {
        "task": "toy", "of": "mean mask", "temperature": 1.0, "ece": 0.02, "ece_by_chance": 0.01,
        "nll": 0.3, "brier": 0.1,
    }  # fmt: skip
    (tmp_path / "error_ranking.json").write_text(json.dumps([ranked, honest]))
    found = section(tmp_path)
    assert "| 1 − p | 0.87 (0.84–0.90) |" in found
    assert "| toy | mean mask | 1.00 | 2.0 (1.0) | 0.300 | 0.100 |" in found
    assert "1,500 texts, 300 of them out of scope" in found
    assert f"| policy | {line['auroc']:.3f}" in found
    assert "### What they cost" not in found
