"""A run ends with the thresholds that its own examples can show to keep a promise."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dalorra.adapter.directory import read_adapter
from dalorra.errors import ConfigError
from training.config import read_config
from training.data import load_data
from training.novelty import novelty_limit, trained_and_held_out
from training.orthography import VARIANTS, one_spelling, spellings
from training.run import Run, train
from training.tasks import data_digest, load_examples

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture
def rated(tmp_path) -> Callable[[int], Path]:
    """`rated(n)`: folder of n distinct reviews that are easily told apart, and 20 to score."""

    def write(n: int) -> Path:
        for split, count, tail in (("train", n, ""), ("validation", 20, " again")):
            path = tmp_path / f"rated-{n}" / "reviews" / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [
                {"text": f"{3 * ('bad ', 'good ')[i % 2]}{i}{tail}", "label": i % 2}
                for i in range(count)
            ]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / f"rated-{n}"

    return write


LEARNS = {
    "optimizer": {"steps": 60, "batch_size": 16, "learning_rate": 0.02},
    "evaluation": {"every": 30, "novelty": True, "target_error": 0.1},
}


def test_a_small_task_accepts_nothing_and_is_told_what_would_change_that(
    configure, rated, tmp_path, capsys
):
    data = {"source": str(rated(40)), "holdout": 0.1}
    adapter = train(configure(data=data), overrides={})
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["examples"] == {"train": 36, "holdout": 4, "calibration": 0, "test": 20}
    policy = read_adapter(adapter).policy
    assert policy is not None
    assert policy.never_accepts
    assert policy.target_error is None
    said = capsys.readouterr().err
    assert "nothing is accepted yet, because its thresholds are not calibrated" in said
    assert "for an error of 0.05 at least 60 that are answered rightly" in said
    assert "a training set of 600 or more" in said


@pytest.mark.parametrize("augment", ["none", "orthography"])
def test_a_larger_task_is_calibrated_on_examples_that_chose_nothing_else(
    configure, rated, tmp_path, capsys, augment
):
    path = configure(data={"source": str(rated(700)), "augment": augment}, **LEARNS)
    adapter = read_adapter(train(path, overrides={}))
    config = read_config(path)
    data = load_data(config, config.resolved_task())
    assert [len(p) for p in (data.calibration, data.holdout, data.train)] == [140, 140, 420]
    policy, novelty = adapter.policy, adapter.novelty
    assert policy is not None
    assert novelty is not None
    assert (policy.target_error, policy.confidence) == (0.1, 0.95)
    assert 100 <= policy.n < 140
    assert policy.accepted > 0.5
    assert policy.upper_bound <= 0.1
    asked = data.calibration
    if augment == "orthography":
        asked = [one_spelling(example) for example in asked]
        assert f"each in one of {VARIANTS} spellings" in policy.source
    assert policy.data_digest == data_digest(asked)
    assert policy.adapter_digest == adapter.digest
    assert policy.held_to(adapter.digest, config.bank.identity, novelty.digest) == policy
    level, _ = novelty_limit(novelty, None, 0.95)
    assert (policy.min_novelty_p, policy.novelty_digest) == (level, novelty.digest)
    assert sorted(policy.precisions) == ["bfloat16 on cpu", "float32 on cpu"]
    looks = json.loads((adapter.path / "looks.json").read_text())
    assert len(looks["looks"]) == 1
    assert "error among accepted answers ≤ 0.1 with 95 % confidence" in capsys.readouterr().err

    manifest = json.loads((adapter.path / "dalorra.json").read_text())["training"]
    examples = load_examples(config.resolved_task(), "train", config.data.source)
    assert trained_and_held_out(manifest, examples) == (data.train, data.holdout)
    with pytest.raises(ConfigError, match="not the examples that the adapter was trained on"):
        trained_and_held_out(manifest | {"calibration": 139}, examples)


def test_inputs_of_the_evaluation_that_were_used_are_counted_and_said(
    configure, rated, tmp_path, capsys
):
    folder = rated(60)
    rows = (folder / "reviews" / "train.jsonl").read_text().splitlines()[:7]
    with (folder / "reviews" / "validation.jsonl").open("a") as file:
        file.write("\n".join(rows) + "\n")
    data = {"source": str(folder), "calibration": 20, "augment": "orthography"}
    train(configure(data=data), overrides={"optimizer.steps": "1"})
    metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    assert metrics["used"] == 7, "whatever part they are in"
    assert "of 27 evaluation examples 7 with inputs that it was" in capsys.readouterr().err


def test_all_spellings_are_trained_on_and_count_once(configure):
    config = read_config(configure(data={"augment": "orthography"}))
    run = Run(config)
    trained = {prompt.prompt_ids for prompt, _ in run.fit().train_dataset}
    wanted = [spelt for example in run.data.train for spelt in spellings(example)]
    assert trained == {prompt.prompt_ids for prompt, _ in run.labelled_prompts(wanted)}
    assert run.model.objective.train_size == len(run.data.train) < len(trained)


def test_a_run_selects_on_one_spelling_of_each_example(configure):
    plain, mixed = (
        Run(read_config(configure(name, data={"augment": name})))
        for name in ("none", "orthography")
    )
    mixed.data.holdout[:] = plain.data.holdout
    before = plain.holdout_metrics()
    assert before["nll"] != mixed.holdout_metrics()["nll"]
    plain.data.holdout[:] = [one_spelling(example) for example in plain.data.holdout]
    assert plain.holdout_metrics()["nll"] == mixed.holdout_metrics()["nll"]
