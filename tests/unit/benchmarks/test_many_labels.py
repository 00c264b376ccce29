"""The benchmarks of tasks with many labels: their costs, what rejects, and the rendered part."""

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.many_labels import measure, trie_of
from benchmarks.many_labels_section import section
from benchmarks.novelty_scores import LAST_DEPTHS
from benchmarks.out_of_scope import OUTSIDE, Contender, compare_scores, judged
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


def clusters(n: int, seed: int, spread: float) -> tuple[torch.Tensor, list[str]]:
    """Features of two labels that lie apart at the last depth, and noise at the others."""
    generator = torch.Generator().manual_seed(seed)
    labels = [i % 2 for i in range(n)]
    x = torch.randn((n, 3, 4), generator=generator)
    x[:, -1] += spread * (2 * torch.tensor(labels)[:, None] - 1)
    return x, [str(label) for label in labels]


def test_texts_between_the_labels_are_told_by_the_nearest_at_the_last_depth():
    training, classes = clusters(400, 0, spread=9.0)
    usual, outside = clusters(200, 1, spread=9.0)[0], clusters(100, 2, spread=0.0)[0]
    lines = compare_scores(training, classes, usual, outside)
    by = {(line["score"], line["last_depth"]): line["auroc"] for line in lines}
    assert len(by) == len(lines) == 2 * len(LAST_DEPTHS)
    assert by["nearest label", 1.0] > 0.99
    assert by["all training data", 1.0] < 0.5, "they lie in the middle of all"
    assert lines[-1]["n"] == {"train": 400, "in": 200, "out": 100}


def test_novelty_alone_is_scored_where_a_contender_uses_it():
    contender, examples = answered("any", 0.0)
    told = {
        text: replace(one, novelty=0.01 if int(text.split()[1]) % 5 == 0 else 0.5)
        for text, one in contender.predictions.items()
    }
    novel = replace(contender, predictions=told, min_novelty_p=0.02)
    assert judged(novel, examples, 0.18, seed=0)["auroc_of_novelty"] == 1.0
    assert judged(novel, examples, 0.18, seed=0)["accepted_outside"] == 0.0
    assert judged(contender, examples, 0.18, seed=0)["auroc_of_novelty"] is None


def test_the_part_says_what_was_measured_and_leaves_out_what_was_not(tmp_path):
    assert section(tmp_path) == "## Many labels\n"
    contender, examples = answered("policy", 0.5)
    line = judged(contender, examples, 0.18, seed=0)
    training, classes = clusters(60, 0, spread=9.0)
    scores = compare_scores(training, classes, training, training + 1.0)
    (tmp_path / "out_of_scope.json").write_text(json.dumps([line, *scores]))
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
    assert found.count("| nearest label |") == len(LAST_DEPTHS)
    assert "### What they cost" not in found
