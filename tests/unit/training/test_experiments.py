"""Experiments: what runs there are, what a result holds, and that an interrupted one goes on."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from pyarrow import parquet

from dalorra.errors import ConfigError
from training.experiments import Experiment, Runner, experiments, load_experiment
from training.experiments.figures import _undominated
from training.experiments.report import write_report
from training.experiments.results import Score, Summary, ranked, relative_work
from training.methods import METHODS


@pytest.fixture
def experiment(files) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "toy",
            "question": "Which of two?",
            "config": {
                "task": str(files / "task.yaml"),
                "base_model": str(files / "base"),
                "device": "cpu",
                "dtype": "float32",
                "data": {"source": str(files / "data"), "holdout": 0.25},
                "adapter": {"rank": 2, "alpha": 4.0, "max_tokens": 64},
                "optimizer": {"steps": 2, "batch_size": 4, "learning_rate": 0.01},
                "evaluation": {"every": 2, "keep_best": False},
                "bank": {"samples": 3},
            },
            "tasks": [
                {
                    "name": "reviews, few",
                    "config": {"data": {"train_limit": 8}},
                    "seeds": [1, 2],
                    "shifts": [{"task": str(files / "task.yaml"), "split": "train", "limit": 6}],
                    "inputs": ["good", "so bad"],
                    "plane": 4,
                }
            ],
            "variants": [
                {"name": "MLE", "config": {"method": {"name": "mle"}}, "seeds": [1]},
                {"name": "DALorRA 0.3", "config": {"method": {"prior": 0.3}}},
            ],
        }
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
    experiment, tmp_path, monkeypatch
):
    runner = Runner(experiment, tmp_path, {})
    (first,) = runner.run(["MLE"])
    result = json.loads(first.read_text())
    assert result["test"]["n"] == 12
    assert result["examples"]["train"] == 8
    assert result["test"]["auroc_variance"] in (0.5, None)  # plain LoRA has no variance
    assert {"versions", "hardware", "config", "data_digest"} <= result.keys()
    assert str(tmp_path) not in first.read_text()
    shift = next(iter(result["shifts"].values()))
    assert {"auroc_shift", "nll"} <= shift.keys()  # the same labels: scored too
    assert [answer["input"] for answer in result["inputs"]] == ["good", "so bad"]
    rows = parquet.read_table(first.with_name("predictions.parquet")).to_pylist()
    assert len(rows) == 12 + 6
    assert {row["data"] for row in rows if row["index"] > 5} == {"test"}
    assert not (first.parent / "checkpoints").exists()

    before = first.stat().st_mtime_ns
    paths = Runner(experiment, tmp_path, {}).run()
    assert len(paths) == 3
    assert first.stat().st_mtime_ns == before  # not trained again
    masks = json.loads(paths[1].read_text())["parameters"]["mask_probabilities"]
    assert all(len(row) == 2 and 0 < min(row) <= max(row) < 1 for row in masks.values())

    monkeypatch.setattr(Runner, "_one", lambda *_: pytest.fail("trained again"))
    Runner(experiment, tmp_path, {}).run()
    with pytest.raises(ConfigError, match="another configuration: remove its folder"):
        Runner(experiment, tmp_path, {"optimizer": {"steps": 3}}).run()


def test_a_run_that_another_experiment_has_made_is_not_made_twice(
    experiment, tmp_path, monkeypatch
):
    made = Runner(experiment, tmp_path, {}).run(["DALorRA 0.3"])
    (task,) = experiment.tasks
    fewer = task.model_copy(update={"name": "again", "seeds": (1,), "inputs": (), "plane": 0})
    ours = experiment.variants[1].model_copy(update={"name": "ours"})
    asked = {"name": "later", "tasks": (fewer,), "variants": (ours,)}
    monkeypatch.setattr(Runner, "_made", lambda *_: pytest.fail("made again"))
    (path,) = Runner(experiment.model_copy(update=asked), tmp_path, {}).run()
    first, later = (json.loads(p.read_text()) for p in (made[0], path))
    assert later["test"] == first["test"]
    assert (later["experiment"], later["task"], later["variant"]) == ("later", "again", "ours")
    assert (later["made_in"], later["config"]["name"]) == ("toy", "again/ours/seed-1")
    assert "inputs" not in later
    assert path.with_name("predictions.parquet").exists()
    assert Runner(experiment.model_copy(update=asked), tmp_path, {}).run() == [path], "it is done"
    for other in (
        {"tasks": (fewer.model_copy(update={"seeds": (3,)}),)},
        {"tasks": (fewer.model_copy(update={"inputs": ("other",)}),)},
        {
            "tasks": (
                fewer.model_copy(
                    update={"shifts": (task.shifts[0].model_copy(update={"limit": 5}),)}
                ),
            )
        },
    ):
        unlike = experiment.model_copy(update=asked | other | {"name": "unlike"})
        with pytest.raises(pytest.fail.Exception, match="made again"):
            Runner(unlike, tmp_path, {}).run()


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


@pytest.mark.parametrize(
    ("scope", "last_layers", "samples", "work"),
    [
        ("answer_tokens", None, 1, 1.0),
        ("all_tokens", None, 10, 10.0),
        ("answer_tokens", None, 10, (36 + 40) / 40),
        ("all_tokens", 3, 10, (27 + 30) / 30),
        ("answer_tokens", 15, 10, (15 * 40 + 15 * 76) / (30 * 40)),
    ],
)
def test_work_is_counted_in_rows_of_layers(scope, last_layers, samples, work):
    adapter = {"scope": scope, "last_layers": last_layers}
    run = {"config": {"adapter": adapter}, "samples": samples}
    size = {"prompt": 36, "cue": 4, "layers": 30}
    assert relative_work(run, size) == pytest.approx(work)


def test_variants_that_adapt_different_rows_have_a_frontier(experiment, tmp_path):
    (task,) = experiment.tasks
    mle = experiment.variants[0]
    everywhere = mle.model_copy(
        update={"name": "all", "config": {**mle.config, "adapter": {"scope": "all_tokens"}}}
    )
    plain = {"tasks": (task.model_copy(update={"seeds": (1,)}),), "variants": (mle, everywhere)}
    Runner(experiment.model_copy(update=plain), tmp_path / "results", {}).run()
    text = write_report(tmp_path / "results", tmp_path / "docs" / "results.md").read_text()
    assert "![Calibration by work per answer](images/results/toy_frontier.png)" in text
    assert _undominated([(2.0, 0.5), (1.0, 0.6), (1.0, 0.7), (3.0, 0.5)]) == [
        (1.0, 0.6),
        (2.0, 0.5),
    ]


def test_the_report_shows_every_score_and_marks_the_best(experiment, tmp_path):
    (task,) = experiment.tasks
    plain = experiment.model_copy(update={"tasks": (task.model_copy(update={"seeds": (1,)}),)})
    paths = Runner(plain, tmp_path / "results", {}).run()
    for path, nll, ece in zip(paths, (0.5, 0.25), (0.125, 0.25), strict=True):
        result = json.loads(path.read_text())
        result["test"] |= {"nll": nll, "ece": ece}
        path.write_text(json.dumps(result))
    (tmp_path / "results" / "toy" / "FINDINGS.md").write_text("It is a toy.")
    out = write_report(tmp_path / "results", tmp_path / "docs" / "results.md")
    text = out.read_text()
    mle, ours = (
        line
        for line in text.splitlines()
        if " | <u>0.500</u> | " in line or " | **0.250** | " in line
    )
    assert mle.startswith("| MLE | 1 | ")
    assert " | **12.5** | " in mle
    assert ours.startswith("| DALorRA 0.3 | 1 | ")
    assert "It is a toy." in text
    assert "2 runs" in text
    linked = re.findall(r"\]\((images/results/[^)]+)\)", text)
    assert linked
    assert all((out.parent / name).is_file() for name in linked)
    assert all((out.parent / name).with_suffix(".svg").is_file() for name in linked)


def test_a_mean_over_seeds_has_its_standard_deviation():
    score = Score("ACC %", "a.b", percent=True)
    assert score.show(Summary.of([0.5, 0.7, None])) == "60.0 ± 14.1"
    assert score.show(Summary.of([0.5])) == "50.0"
    assert score.show(Summary.of([None])) == "–"
    assert ranked([0.2, None, 0.1, 0.2], low=True) == [1, None, 0, 1]


def test_a_study_that_chooses_settings_looks_at_the_hold_out_alone(experiment, tmp_path):
    (task,) = experiment.tasks
    blind = experiment.model_copy(
        update={"tasks": (task.model_copy(update={"score_test": False}),)}
    )
    (path,) = Runner(blind, tmp_path, {}).run(["MLE"])
    result = json.loads(path.read_text())
    assert "test" not in result
    assert result["holdout"]["nll"] > 0


def test_a_part_of_an_experiment_can_be_run_alone(experiment, tmp_path, monkeypatch):
    (task,) = experiment.tasks
    both = experiment.model_copy(
        update={"tasks": (task, task.model_copy(update={"name": "other", "seeds": (4, 5)}))}
    )
    started = []
    monkeypatch.setattr(Runner, "_one", lambda _, spec, __: started.append(spec.key))
    Runner(both, tmp_path, {}).run(["DALorRA 0.3"], ["other"])
    assert started == ["other/DALorRA-0.3/seed-4", "other/DALorRA-0.3/seed-5"]


def test_mistakes_are_found_before_the_first_run(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(Runner, "_one", lambda *_: pytest.fail("trained"))
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


def test_the_smoke_experiment_runs_every_method(files, tmp_path):
    smoke = load_experiment("smoke")
    named = {variant.config["method"]["name"] for variant in smoke.variants}
    assert named == {method.key() for method in METHODS}
    here = {
        "task": str(files / "task.yaml"),
        "base_model": str(files / "base"),
        "device": "cpu",
        "dtype": "float32",
        "data": {"source": str(files / "data"), "holdout": 0.25, "train_limit": 8},
        "adapter": {"max_tokens": 64},
    }
    for path in Runner(smoke, tmp_path, here).run():
        assert 0 <= json.loads(path.read_text())["test"]["accuracy"] <= 1


def test_a_description_that_does_not_hold_together_is_refused(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({"name": "bad", "question": "?", "config": {}, "tasks": []}))
    with pytest.raises(ConfigError, match=r"bad\.yaml: tasks: Tuple should have at least 1"):
        load_experiment(str(path))
