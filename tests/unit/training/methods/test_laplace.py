"""Whole runs of the method `laplace` on a tiny base, and what becomes of its adapter."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dalorra.adapter.directory import read_adapter
from dalorra.adapter.export import export_bank, export_mean
from dalorra.cli import app
from dalorra.errors import AdapterError, ConfigError
from dalorra.posteriors import Laplace
from dalorra.predictor import Predictor
from training.laplace import FACTORS_FILE
from training.load import load_evaluable
from training.run import train

METHOD = {"method": {"name": "laplace"}}


def run(path: Path, **overrides: str) -> Path:
    return train(path, resume=False, overrides=overrides)


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
def test_a_run_ends_with_an_adapter_that_answers_as_its_evaluation_says(
    configure, tmp_path, files, no_figures, answers_as_evaluated, scope
):
    adapter = run(configure(**METHOD, adapter={"scope": scope}, evaluation={"novelty": True}))
    manifest = read_adapter(adapter).manifest
    assert manifest.method == "laplace"
    assert manifest.posterior["prior_precision"] > 0
    metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    assert (metrics["method"], metrics["samples"], metrics["n"]) == ("laplace", 1, 12)
    assert metrics["nll"] != metrics["mean_mask"]["nll"]

    predictor = load_evaluable(adapter, str(files / "base"), device="cpu", dtype="float32")
    assert predictor.policy.adapter_digest == metrics["adapter_digest"]
    answers_as_evaluated(predictor)
    assert predictor.predict([predictor.encode("good")])[0].variance > 0


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("laplace") / "adapter"


@pytest.fixture
def trained(adapter, configure, no_figures) -> Path:
    """One adapter for all tests that only read it."""
    if not adapter.exists():
        shutil.copytree(run(configure(**METHOD)), adapter)
    return adapter


def test_the_trained_weights_are_those_of_plain_lora(trained, configure, no_figures):
    plain = run(configure("mle", method={"name": "mle"}))
    found, expected = read_adapter(trained).tensors, read_adapter(plain).tensors
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in found)


def test_serving_is_refused_before_the_base_is_loaded(trained):
    with pytest.raises(AdapterError, match="laplace adapter cannot be served"):
        Predictor.load(trained, "there-is-no-such-base")


def test_the_command_line_evaluates_and_describes_it(trained, files, tmp_path, no_figures):
    told = CliRunner().invoke(app, ["info", str(trained)])
    assert json.loads(told.stdout)["method"] == "laplace"
    options = ["--base-model", str(files / "base"), "--device", "cpu", "--dtype", "float32"]
    data = ["--data", str(files / "data"), "--task", str(files / "task.yaml")]
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["evaluate", str(trained), *data, *options, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert json.loads((out / "metrics.json").read_text())["n"] == 12
    refused = CliRunner().invoke(app, ["predict", "good", "--adapter", str(trained), *options])
    assert refused.exit_code == 2
    assert "`dalorra evaluate` scores it" in " ".join(refused.stderr.split())


def test_its_mean_is_a_plain_lora_and_a_bank_it_has_none(trained, tmp_path):
    assert (export_mean(trained, tmp_path / "mean") / "adapter_model.safetensors").exists()
    with pytest.raises(AdapterError, match="cannot be served"):
        export_bank(trained, tmp_path / "bank")


def test_factors_that_are_missing_or_anothers_are_refused(
    trained, configure, files, tmp_path, no_figures
):
    def load(path: Path) -> None:
        load_evaluable(path, str(files / "base"), device="cpu", dtype="float32")

    copied = tmp_path / "copied"
    shutil.copytree(trained, copied)
    load(copied)
    (copied / FACTORS_FILE).unlink()
    with pytest.raises(AdapterError, match="missing or damaged"):
        load(copied)
    other = run(configure("other", **METHOD), **{"optimizer.steps": "3"})
    shutil.copy(other / FACTORS_FILE, copied / FACTORS_FILE)
    with pytest.raises(AdapterError, match="belongs to another adapter"):
        load(copied)


@pytest.mark.parametrize(
    "settings",
    [
        {"kfac": "expand"},
        {"factor_rank": 4},
        {"prior_precision": 3.0},
        {"training_precision": 5.0},
    ],
    ids=str,
)
def test_its_settings_reach_the_posterior(trained, configure, no_figures, settings):
    changed = run(configure(method={"name": "laplace", **settings}))
    before, after = (read_adapter(path).posterior for path in (trained, changed))
    assert isinstance(before, Laplace)
    assert isinstance(after, Laplace)
    assert after.prior_precision != before.prior_precision
    if "prior_precision" in settings:
        assert after == before.model_copy(update={"prior_precision": 3.0})
    if "factor_rank" in settings:
        sizes = [(path / FACTORS_FILE).stat().st_size for path in (trained, changed)]
        assert sizes[1] < sizes[0] / 2


def test_a_precision_chosen_on_the_hold_out_explains_it_better_than_any_other_tried(
    configure, files, tmp_path, no_figures
):
    def holdout_nll(prior_precision: object) -> tuple[float, float]:
        method = {"name": "laplace", "prior_precision": prior_precision}
        adapter = read_adapter(run(configure(str(prior_precision), method=method)))
        return adapter.posterior.prior_precision, adapter.manifest.training["holdout"]["nll"]

    chosen, least = holdout_nll("holdout")
    for other in (max(chosen / 10**0.5, 1e-3), chosen * 10**0.5, 1.0, 1e6):
        assert holdout_nll(other)[1] >= least - 1e-6


def test_an_integrated_head_is_refused(configure):
    with pytest.raises(ConfigError, match=r"bank\.head"):
        run(configure(**METHOD, bank={"head": "integrated"}))
