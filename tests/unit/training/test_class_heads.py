"""Training with labels that are classes of a head at the end of the cue."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dalorra.adapter.directory import adapter_digest, read_adapter
from dalorra.adapter.layer import class_head
from dalorra.errors import ConfigError
from dalorra.predictor import Predictor
from training.asking import MOST_NODES
from training.config import read_config
from training.run import Run, train


@pytest.fixture
def by_head(configure, files):
    """`configure` for a run on the reviews whose labels are classes."""

    def write(name: str = "run", **changes: Any) -> Path:
        task = yaml.safe_load((files / "task.yaml").read_text()) | {"labels_by": "head"}
        return configure(name, **{"task": task, **changes})

    return write


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
@pytest.mark.parametrize("method", ["dalorra", "blob"])
def test_a_run_learns_them_and_its_adapter_answers_as_it_was_scored(
    scope, method, by_head, no_figures, answers_as_evaluated, tmp_path, files
):
    changes = {"adapter": {"scope": scope}, "method": {"name": method}}
    adapter = read_adapter(train(by_head(optimizer={"steps": 40}, **changes), overrides={}))
    assert adapter.manifest.label_tokens == {"negative": 0, "positive": 1}
    assert not any("lm_head" in name for name in [*adapter.manifest.modules, *adapter.tensors])
    predictor = Predictor.load(adapter.path, str(files / "base"), device="cpu", dtype="float32")
    answers_as_evaluated(predictor)
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    nll = [entry["nll"] for entry in map(json.loads, log) if "nll" in entry]
    assert sum(nll[-8:]) < 0.8 * sum(nll[:8])
    card = (adapter.path / "README.md").read_text()
    assert "| Labels | negative, positive |" in card
    assert "classes of a head at the end of the cue" in card


def test_a_resumed_run_ends_bit_for_bit_as_the_unbroken_one(
    by_head, no_figures, train_with_a_crash
):
    unbroken = train(by_head("unbroken"), overrides={})
    broken = train_with_a_crash(by_head("broken"))
    assert adapter_digest(broken) == adapter_digest(unbroken)


@pytest.mark.parametrize(
    ("tokens", "found"),
    [(1 + MOST_NODES // 2, "auto"), (2 + MOST_NODES // 2, "head")],
)
def test_a_trie_that_would_be_large_makes_classes_of_labels(tokens, found, configure, files):
    task = yaml.safe_load((files / "task.yaml").read_text())
    task["labels"] = {"negative": "n" * tokens, "positive": "p" * tokens}  # a token per letter
    run = Run(read_config(configure(task=task)))
    assert run.prompt_format.labels_by == found
    assert (run.tokenizer.trie is None) == (found == "head")
    task["labels_by"] = "trie"
    assert Run(read_config(configure(task=task))).tokenizer.trie is not None


def test_a_class_begins_as_the_text_of_its_label(by_head):
    run = Run(read_config(by_head()))
    head = class_head(run.model)
    assert head is not None
    output = run.base.model.get_output_embeddings().weight
    for row, text in zip(head.weight, run.task.labels.values(), strict=True):
        tokens = run.base.tokenizer(text).input_ids
        torch.testing.assert_close(row, output[tokens].mean(dim=0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": {"name": "laplace"}}, "method.name: laplace is not for a class head"),
        ({"method": {"name": "ensemble"}}, "method.name: ensemble is not for a class head"),
        ({"bank": {"head": "integrated"}}, "bank.head: a class head has no mask"),
        ({"adapter": {"modules": ["lm_head"]}}, "adapter.modules: "),
    ],
    ids=str,
)
def test_what_does_not_go_with_them_is_refused_before_training(changes, message, by_head):
    with pytest.raises(ConfigError, match=message):
        train(by_head(**changes), overrides={})
