"""What results are made into: means over seeds, tables, figures."""

import json
import re

import pytest

from training.experiments import Runner
from training.experiments.figures import (
    by_decile,
    by_layer,
    by_work,
    undominated,
)
from training.experiments.report import write_report
from training.experiments.results import Results, Score, Summary, ranked, relative_work


def test_a_mean_over_seeds_has_its_standard_deviation():
    score = Score("ACC %", "a.b", percent=True)
    assert score.show(Summary.of([0.5, 0.7, None])) == "60.0 ± 14.1"
    assert score.show(Summary.of([0.5])) == "50.0"
    assert score.show(Summary.of([None])) == "–"
    assert ranked([0.2, None, 0.1, 0.2], low=True) == [1, None, 0, 1]


@pytest.mark.parametrize(
    ("key", "value"),
    [("a.b", 1.0), ("a.0.05", 2.0), ("b", 3.0), ("a.c", None), ("b.c", None), ("c.a", None)],
)
def test_a_score_is_found_by_its_key(key, value):
    assert Score("", key).of({"a": {"b": 1, "0.05": 2, "c": None}, "b": 3}) == value


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


def test_the_report_shows_every_score_and_marks_the_best(experiment, tmp_path):
    (task,) = experiment.tasks
    plain = experiment.model_copy(update={"tasks": (task.model_copy(update={"seeds": (1,)}),)})
    paths = Runner(plain, tmp_path / "results", {}).run()
    for path, nll, ece in zip(paths, (0.5, 0.25), (0.125, 0.375), strict=True):
        result = json.loads(path.read_text())
        result["test"] |= {"nll": nll, "ece": ece}
        path.write_text(json.dumps(result))
    (tmp_path / "results" / "toy" / "FINDINGS.md").write_text("It is a toy.")
    out = write_report(tmp_path / "results", tmp_path / "docs" / "results.md")
    text = out.read_text()
    ours, mle = (
        line
        for line in text.splitlines()
        if " | <u>0.500</u> | " in line or " | **0.250** | " in line
    )
    assert mle.startswith("| MLE | 1 | ")
    assert " | 12.5 | " in mle, "no ECE is the best"
    assert ours.startswith("| DALorRA 0.3 | 1 | ")
    assert "It is a toy." in text
    assert "2 runs" in text
    linked = re.findall(r"\]\((images/results/[^)]+)\)", text)
    assert linked
    assert all((out.parent / name).is_file() for name in linked)
    assert all((out.parent / name).with_suffix(".svg").is_file() for name in linked)


def test_what_calibrated_answers_would_show_stands_beside_the_ece_of_early_results_too(
    experiment, tmp_path
):
    paths = list(Runner(experiment, tmp_path / "results", {}).run())
    now = write_report(tmp_path / "results", tmp_path / "now.md").read_text()
    for path in paths:
        result = json.loads(path.read_text())
        assert 0.0 <= result["test"].pop("ece_by_chance") < 0.5
        path.write_text(json.dumps(result))
    early = write_report(tmp_path / "results", tmp_path / "early.md").read_text()
    assert "| NLL | − first | Brier | − first | ECE % | by chance |" in early
    assert early == now


def test_the_temperature_is_shown_and_not_ranked(experiment, tmp_path):
    (task,) = experiment.tasks
    tempered = task.model_copy(update={"tempered": True, "seeds": (1,)})
    plain = experiment.model_copy(update={"tasks": (tempered,)})
    for path, value in zip(Runner(plain, tmp_path / "results", {}).run(), (2.5, 1.5), strict=True):
        result = json.loads(path.read_text())
        result["tempered"]["temperature"] = value
        path.write_text(json.dumps(result))
    page = write_report(tmp_path / "results", tmp_path / "docs" / "results.md").read_text()
    text = (tmp_path / "results" / "toy" / "TABLES.md").read_text()
    _, shown = text.split("At the temperature that fits the ")
    assert "| MLE | 1 | 2.500 |" in shown
    assert "| DALorRA 0.3 | 1 | 1.500 |" in shown
    assert "| NLL | − first |" in shown
    figure = "images/results/toy_tempered.png)"
    assert f"![NLL and ECE at the hold-out's temperature](../../docs/{figure}" in shown
    assert " | at a temperature |" in page
    assert "[All scores](../results/toy/TABLES.md)" in page
    assert "\n## What else was measured?\n\n### Toy\n" in page


def test_variants_that_adapt_different_rows_have_a_frontier(experiment, tmp_path):
    (task,) = experiment.tasks
    mle = experiment.variants[0]
    everywhere = mle.model_copy(
        update={"name": "all", "config": {**mle.config, "adapter": {"scope": "all_tokens"}}}
    )
    plain = {"tasks": (task.model_copy(update={"seeds": (1,)}),), "variants": (mle, everywhere)}
    Runner(experiment.model_copy(update=plain), tmp_path / "results", {}).run()
    text = write_report(tmp_path / "results", tmp_path / "docs" / "results.md").read_text()
    assert "![NLL and Brier score by work per answer](images/results/toy_frontier.png)" in text
    assert undominated([(2.0, 0.5), (1.0, 0.6), (1.0, 0.7), (3.0, 0.5)]) == [
        (1.0, 0.6),
        (2.0, 0.5),
    ]


def test_the_frontier_names_variants_that_one_task_alone_has():
    def run(task, variant, layers):
        adapter = {"scope": "all_tokens", "last_layers": layers}
        size = {"prompt": 36, "cue": 4, "layers": 30}
        scores = {"nll": 0.5, "brier": 0.1, "size": size}
        config = {"adapter": adapter}
        return {"task": task, "variant": variant, "config": config, "samples": 10, "test": scores}

    runs = [run("a", "all", None), run("a", "4", 4), run("b", "15", 15), run("b", "all", None)]
    figure = by_work(Results("toy", runs))
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {"all", "4", "15"}
    of_all = [line for axes in figure.axes for line in axes.lines if line.get_label() == "all"]
    assert len(of_all) == 4
    assert len({(line.get_color(), line.get_marker()) for line in of_all}) == 1


def test_figures_show_every_variant_however_many():
    groups = [{"upper": 0.1 * i, "error": 0.05 * i} for i in range(1, 11)]
    runs = [
        {"task": "toy", "variant": f"v{i}", "test": {"error_by_variance": groups}}
        for i in range(12)
    ]
    axes = by_decile(Results("toy", runs)).axes[0]
    assert [line.get_label() for line in axes.lines] == [f"v{i}" for i in range(12)]
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == 12


def test_masks_are_mapped_by_module_and_layer_of_a_llama_and_of_an_encoder():
    maps = by_layer(
        {
            "model.layers.0.self_attn.q_proj": [0.1, 0.2],
            "model.layers.1.self_attn.q_proj": [0.3, 0.4],
            "bert.encoder.layer.0.output.dense": [0.5, 0.6],
            "lm_head": [0.7, 0.8],
        }
    )
    assert {kind: grid.tolist() for kind, grid in maps.items()} == {
        "q_proj": [[0.1, 0.2], [0.3, 0.4]],
        "output.dense": [[0.5, 0.6]],
    }
