"""Experiments: what runs there are, what a result holds, and that an interrupted one goes on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from pyarrow import parquet

from dalorra.errors import ConfigError
from training.experiments import Runner, experiments, load_experiment
from training.experiments.predictions import KEPT_FILE, read_kept_answers
from training.methods import METHODS


@pytest.fixture
def no_training(monkeypatch) -> Callable[[], None]:
    """Call it, and training fails from then on."""
    return lambda: monkeypatch.setattr(
        "training.experiments.runner.Run", lambda *_: pytest.fail("trained")
    )


def test_runs_are_tasks_seeds_and_variants(experiment):
    assert [run.key for run in experiment.runs()] == [
        "reviews-few/MLE/seed-1",
        "reviews-few/DALorRA-0.3/seed-1",
        "reviews-few/DALorRA-0.3/seed-2",
    ]
    configs = [run.config(Path("out"), {"optimizer": {"steps": 7}}) for run in experiment.runs()]
    assert [config.seed for config in configs] == [1, 1, 2]
    assert {config.optimizer.steps for config in configs} == {7}
    assert {config.data.train_limit for config in configs} == {8}
    assert [config.method.name for config in configs] == ["mle", "dalorra", "dalorra"]


def test_a_variant_changes_a_method_or_replaces_it(experiment):
    changed = experiment.model_copy(
        update={"config": {**experiment.config, "method": {"name": "dalorra", "temperature": 0.2}}}
    )
    mle, dalorra, _ = (run.config(Path("out"), {}) for run in changed.runs())
    assert mle.method.name == "mle"
    assert (dalorra.method.prior, dalorra.method.temperature) == (0.3, 0.2)


def test_results_are_written_once_and_an_interrupted_experiment_goes_on(
    experiment, tmp_path, no_training
):
    (first,) = Runner(experiment, tmp_path, {}).run(["MLE"])
    result = json.loads(first.read_text())
    assert result["test"]["n"] == 12
    assert result["examples"]["train"] == 8
    assert result["test"]["auroc_variance"] in (0.5, None)  # plain LoRA has no variance
    assert {"versions", "hardware", "config", "data_digest"} <= result.keys()
    assert str(tmp_path) not in first.read_text()
    shift = next(iter(result["shifts"].values()))
    assert {"auroc_shift", "nll"} <= shift.keys()  # the same labels: scored too
    assert [answer["input"] for answer in result["inputs"]] == ["good", "so bad"]
    records = parquet.read_table(first.with_name("predictions.parquet")).to_pylist()
    assert len(records) == 12 + 6
    assert {record["data"] for record in records if record["index"] > 5} == {"test"}
    kept = read_kept_answers(first.parent)
    nll, brier = kept.losses("test").mean(axis=1)
    assert (nll, brier) == pytest.approx((result["test"]["nll"], result["test"]["brier"]), rel=1e-3)
    assert not (first.parent / "checkpoints").exists()

    before = first.stat().st_mtime_ns
    paths = Runner(experiment, tmp_path, {}).run()
    assert len(paths) == 3
    assert first.stat().st_mtime_ns == before  # not trained again
    masks = json.loads(paths[1].read_text())["parameters"]["mask_probabilities"]
    assert all(len(row) == 2 and 0 < min(row) <= max(row) < 1 for row in masks.values())

    no_training()
    Runner(experiment, tmp_path, {}).run()
    with pytest.raises(ConfigError, match="another configuration: remove its folder"):
        Runner(experiment, tmp_path, {"optimizer": {"steps": 3}}).run()


def test_a_run_that_another_experiment_has_made_is_not_made_twice(
    experiment, tmp_path, no_training
):
    made = Runner(experiment, tmp_path, {}).run(["DALorRA 0.3"])
    (task,) = experiment.tasks
    fewer = task.model_copy(update={"name": "again", "seeds": (1,), "inputs": (), "plane": 0})
    ours = experiment.variants[1].model_copy(update={"name": "ours"})
    asked = {"name": "later", "tasks": (fewer,), "variants": (ours,)}
    no_training()
    (path,) = Runner(experiment.model_copy(update=asked), tmp_path, {}).run()
    first, later = (json.loads(p.read_text()) for p in (made[0], path))
    assert later["test"] == first["test"]
    assert (later["experiment"], later["task"], later["variant"]) == ("later", "again", "ours")
    assert (later["made_in"], later["config"]["name"]) == ("toy", "again/ours/seed-1")
    assert "inputs" not in later
    assert path.with_name("predictions.parquet").exists()
    ours, theirs = (read_kept_answers(p.parent) for p in (path, made[0]))
    assert (ours.losses("test") == theirs.losses("test")).all()
    assert Runner(experiment.model_copy(update=asked), tmp_path, {}).run() == [path], "it is done"
    (shift,) = task.shifts
    for other in (
        {"seeds": (3,)},
        {"inputs": ("other",)},
        {"shifts": (shift.model_copy(update={"limit": 5}),)},
        {"shifts": (shift.model_copy(update={"limit": None}),)},
    ):
        update = asked | {"name": "unlike", "tasks": (fewer.model_copy(update=other),)}
        with pytest.raises(pytest.fail.Exception, match="trained"):
            Runner(experiment.model_copy(update=update), tmp_path, {}).run()


def test_a_run_of_another_experiment_that_kept_no_answers_is_made_again(
    experiment, tmp_path, no_training
):
    (made,) = Runner(experiment, tmp_path, {}).run(["MLE"])
    (made.parent / KEPT_FILE).unlink()
    no_training()
    again = experiment.model_copy(update={"name": "later"})
    with pytest.raises(pytest.fail.Exception, match="trained"):
        Runner(again, tmp_path, {}).run(["MLE"])
    assert Runner(experiment, tmp_path, {}).run(["MLE"]) == [made], "its own stays valid"


def test_the_plane_holds_test_examples_shifts_and_inputs(experiment, tmp_path):
    (task,) = experiment.tasks
    one = experiment.model_copy(update={"tasks": (task.model_copy(update={"seeds": (2,)}),)})
    (path,) = Runner(one, tmp_path, {}).run()
    result = json.loads(path.read_text())
    points = result["plane"]
    shift = next(iter(result["shifts"]))
    assert [p["data"] for p in points] == ["test"] * 4 + [shift] * 4 + ["inputs"] * 2
    x, y = (torch.tensor([p[axis] for p in points]) for axis in "xy")
    assert abs(x.mean()) < 1e-2
    assert abs(y.mean()) < 1e-2
    assert x.var() >= y.var() > 0
    for point, answer in zip(points[-2:], result["inputs"], strict=True):
        assert point["variance"] == pytest.approx(answer["variance"], rel=1e-2)


def test_a_study_that_chooses_settings_looks_at_the_hold_out_alone(experiment, tmp_path):
    (task,) = experiment.tasks
    blind = experiment.model_copy(
        update={"tasks": (task.model_copy(update={"score_test": False}),)}
    )
    (path,) = Runner(blind, tmp_path, {}).run(["MLE"])
    result = json.loads(path.read_text())
    assert "test" not in result
    assert result["holdout"]["nll"] > 0


def test_the_test_set_is_scored_again_at_the_temperature_of_the_hold_out(experiment, tmp_path):
    (task,) = experiment.tasks
    plain = Runner(experiment, tmp_path, {}).run(["MLE"])
    asked = {"name": "guo", "tasks": (task.model_copy(update={"tempered": True}),)}
    (path,) = Runner(experiment.model_copy(update=asked), tmp_path, {}).run(["MLE"])
    before, after = (json.loads(p.read_text()) for p in (*plain, path))
    assert "made_in" not in after  # nobody has tempered it yet
    assert after["test"]["nll"] == before["test"]["nll"]
    tempered = after["tempered"]
    kept = read_kept_answers(path.parent)
    for name in ("test", "tempered"):
        assert kept.losses(name)[0].mean() == pytest.approx(after[name]["nll"], rel=1e-3)
    assert tempered["temperature"] != pytest.approx(1.0, abs=1e-3)
    # One network's logits by T: the order of the labels stays, how sure it is does not.
    assert tempered["accuracy"] == after["test"]["accuracy"]
    assert tempered["nll"] != after["test"]["nll"]


def test_a_part_of_an_experiment_can_be_run_alone(experiment, tmp_path):
    (task,) = experiment.tasks
    both = experiment.model_copy(
        update={"tasks": (task, task.model_copy(update={"name": "other", "seeds": (4, 5)}))}
    )
    Runner(both, tmp_path, {}).run(["DALorRA 0.3"], ["other"])
    done = sorted(path.parent for path in tmp_path.rglob("result.json"))
    assert done == [tmp_path / "toy/other/DALorRA-0.3" / seed for seed in ("seed-4", "seed-5")]


def test_mistakes_are_found_before_the_first_run(experiment, tmp_path, no_training):
    no_training()
    with pytest.raises(ConfigError, match="no variant is called 'BLOB': there are MLE; DALorRA"):
        Runner(experiment, tmp_path, {}).run(["BLOB"])
    with pytest.raises(
        ConfigError, match="no task setting is called 'toy': there are reviews, few"
    ):
        Runner(experiment, tmp_path, {}).run(tasks=["toy"])
    with pytest.raises(ConfigError, match=r"toy, reviews-few/MLE/seed-1: optimizer\.steps"):
        Runner(experiment, tmp_path, {"optimizer": {"steps": 0}}).run()
    with pytest.raises(ConfigError, match="unknown experiment 'comparsion': give a YAML"):
        load_experiment("comparsion")


@pytest.mark.parametrize("name", experiments())
def test_shipped_experiments_are_complete(name):
    experiment = load_experiment(name)
    assert experiment.name == name
    keys = [run.key for run in experiment.runs()]
    assert len(set(keys)) == len(keys)
    for run in experiment.runs():
        run.config(Path("out"), {})


def test_the_smoke_experiment_runs_every_method(on_reviews, tmp_path):
    smoke = load_experiment("smoke")
    named = {variant.config["method"]["name"] for variant in smoke.variants}
    assert named == {method.key() for method in METHODS}
    few = {"data": on_reviews["data"] | {"train_limit": 8}, "adapter": {"max_tokens": 64}}
    for path in Runner(smoke, tmp_path, on_reviews | few).run():
        assert 0 <= json.loads(path.read_text())["test"]["accuracy"] <= 1


def test_a_description_that_does_not_hold_together_is_refused(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({"name": "bad", "question": "?", "config": {}, "tasks": []}))
    with pytest.raises(ConfigError, match=r"bad\.yaml: tasks: Tuple should have at least 1"):
        load_experiment(str(path))
