"""Runs on a tiny encoder: trained, resumed, served, and the settings that an encoder refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dalorra.adapter.directory import adapter_digest, read_adapter
from dalorra.errors import ConfigError
from dalorra.predictor import Predictor
from tests.tiny_encoder import MODULES, tiny_encoder_folder
from training.config import read_config
from training.run import Run, train

CONFIGS = Path(__file__).parents[3] / "training" / "configs"
METHODS = [
    {"name": "mle"},
    {"name": "mc_dropout", "rate": 0.2},
    {"name": "dalorra", "samples": 2},
    {"name": "c_lora", "hidden": 4},
    {"name": "blob"},
]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> Path:
    """A folder per kind of encoder."""
    folder = tmp_path_factory.mktemp("encoders")
    for kind in MODULES:
        tiny_encoder_folder(folder / kind, kind)
    return folder


@pytest.fixture
def on_encoder(configure, encoders, files):
    """`configure` for a run on a tiny encoder, with the plain text and a list of labels."""

    def write(name: str = "run", kind: str = "bert", **changes: Any) -> Path:
        task = yaml.safe_load((files / "task.yaml").read_text())
        del task["answer_cue"]
        task |= {"template": "{sentence}", "labels": ["negative", "positive"]}
        adapter = {"scope": "all_tokens", "modules": list(MODULES[kind]), "max_tokens": 32}
        sections = {"adapter": adapter | changes.pop("adapter", {})}
        base = {"base_model": str(encoders / kind), "task": task}
        return configure(name, **{**base, **sections, **changes})

    return write


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["name"])
def test_a_run_ends_with_an_adapter_that_answers_as_its_evaluation_says(
    on_encoder, encoders, no_figures, answers_as_evaluated, method
):
    adapter = train(on_encoder(method=method), overrides={"optimizer.steps": "2"})
    manifest = read_adapter(adapter).manifest
    assert (manifest.base_model.kind, manifest.prompt.answer_cue) == ("encoder", None)
    assert manifest.label_tokens == {"negative": 0, "positive": 1}
    base = str(encoders / "bert")
    answers_as_evaluated(Predictor.load(adapter, base, device="cpu", dtype="float32"))
    card = (adapter / "README.md").read_text()
    assert "`{sentence}`" in card
    assert "cue" not in card.lower()


def test_a_distilbert_learns_with_its_head(on_encoder, encoders, tmp_path, no_figures):
    run = Run(
        read_config(
            on_encoder(
                kind="distilbert",
                optimizer={"steps": 60, "batch_size": 9, "learning_rate": 0.03},
                evaluation={"every": 60},
                method={"name": "mc_dropout", "rate": 0.1},
            )
        )
    )
    trunk = {name: p.clone() for name, p in run.base.model.base_model.named_parameters()}
    head = {n: p.clone() for n, p in run.model.named_parameters() if ".modules_to_save." in n}
    run.config.output_dir.mkdir()
    run.fit()
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    losses = [entry["nll"] for entry in map(json.loads, log) if "nll" in entry]
    assert losses[-1] < 0.5 * losses[0]
    after = dict(run.model.named_parameters())
    assert head.keys() == {
        f"base_model.model.{module}.modules_to_save.default.{part}"
        for module in ("pre_classifier", "classifier")
        for part in ("weight", "bias")
    }
    assert not any(torch.equal(after[name], value) for name, value in head.items())
    frozen = {n: p for n, p in run.base.model.base_model.named_parameters() if ".lora_" not in n}
    assert all(torch.equal(p, trunk[n]) for n, p in frozen.items())
    assert not any(module.training for module in run.model.modules()), "no dropout of the base"


def test_a_resumed_run_ends_bit_for_bit_as_the_unbroken_one(
    on_encoder, no_figures, train_with_a_crash
):
    method = {"name": "mc_dropout", "rate": 0.2}
    unbroken = train(on_encoder("unbroken", method=method), overrides={})
    broken = train_with_a_crash(on_encoder("broken", method=method))
    assert adapter_digest(broken) == adapter_digest(unbroken)


def test_a_language_models_task_is_read_without_its_cue(on_encoder, files):
    run = Run(read_config(on_encoder(task=str(files / "task.yaml"))))
    assert run.prompt_format.answer_cue is None
    prompt = run.tokenizer.encode("good")
    expected = run.base.tokenizer("Review: good").input_ids
    assert [*prompt.prompt_ids, *prompt.cue_ids] == expected


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"adapter": {"scope": "answer_tokens"}}, "adapter.scope: .* say all_tokens"),
        ({"adapter": {"max_tokens": 49}}, "adapter.max_tokens: bert reads at most 48"),
        ({"adapter": {"modules": ["query", "classifier"]}}, "'classifier' is part of the head"),
        ({"adapter": {"modules": ["q_proj"]}}, "no linear module 'q_proj'"),
        ({"bank": {"head": "integrated"}}, "bank.head: .* say sampled"),
        ({"method": {"name": "ensemble"}}, "encoder's head, because its members would share"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_with_an_encoder_are_refused(on_encoder, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Run(read_config(on_encoder(**changes)))


def test_a_language_model_needs_an_answer_cue(on_encoder, files):
    path = on_encoder(base_model=str(files / "base"), adapter={"scope": "all_tokens"})
    with pytest.raises(ConfigError, match=r"task\.answer_cue: the language model base needs one"):
        Run(read_config(path))


@pytest.mark.parametrize("name", ["bayeslora_minilm", "bayeslora_distilbert"])
def test_the_shipped_configurations_are_of_encoders(name):
    config = read_config(CONFIGS / f"{name}.yaml")
    assert config.adapter.scope == "all_tokens"
    assert (config.method.name, config.method.position) == ("mc_dropout", "input")
    task = config.resolved_task()
    assert task.prompt_format.render({"sentence": "good"}) == "good"
    assert tuple(task.labels) == ("negative", "positive")
