"""A run ends with novelty features, and the command line fits them again."""

import json

import pytest
from typer.testing import CliRunner

from dalorra.adapter import read_adapter
from dalorra.cli import app
from dalorra.errors import ConfigError
from dalorra.novelty import NOVELTY_FILE
from dalorra.predictor import Predictor
from training.novelty import trained_and_held_out
from training.run import train
from training.tasks import load_examples, load_task


def test_a_run_leaves_features_that_the_command_fits_again(configure, files, no_figures):
    adapter = train(
        configure(), resume=False, overrides={"optimizer.steps": "1", "evaluation.novelty": "true"}
    )
    fitted = read_adapter(adapter).novelty
    assert fitted is not None
    assert len(fitted.calibration) == 6, "the hold-out"
    predictor = Predictor.load(adapter, str(files / "base"), device="cpu", dtype="float32")
    (answer,) = predictor.predict([predictor.encode("good")])
    assert answer.novelty in [pytest.approx(i / 7) for i in range(1, 8)]

    (adapter / NOVELTY_FILE).write_bytes(b"damaged")
    task = str(files / "task.yaml")
    arguments = ["--data", str(files / "data"), "--task", task, "--device", "cpu"]
    base = ["--base-model", str(files / "base"), "--dtype", "float32"]
    result = CliRunner().invoke(app, ["novelty", str(adapter), *arguments, *base])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(adapter / NOVELTY_FILE)
    again = read_adapter(adapter).novelty
    assert again is not None
    assert again.calibration.tolist() == pytest.approx(fitted.calibration.tolist(), rel=1e-3)

    manifest = json.loads((adapter / "dalorra.json").read_text())
    examples = load_examples(load_task(task), "train", files / "data")
    trained, held_out = trained_and_held_out(manifest["training"], examples)
    assert (len(trained), len(held_out)) == (18, 6)
    with pytest.raises(ConfigError, match="not the examples that the adapter was trained on"):
        trained_and_held_out(manifest["training"], examples[1:])
    with pytest.raises(ConfigError, match="does not say which examples"):
        trained_and_held_out({}, examples)
