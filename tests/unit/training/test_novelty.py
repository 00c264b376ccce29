"""A run ends with novelty features, and the command line fits them again."""

import json

import pytest
import torch
from typer.testing import CliRunner

from dalorra.adapter.directory import read_adapter
from dalorra.cli import app
from dalorra.decision.novelty import NOVELTY_FILE
from dalorra.errors import ConfigError
from dalorra.predictor import Predictor
from tests.fakes import FakePredictor
from training.novelty import fit_novelty, trained_and_held_out
from training.orthography import VARIANTS, spellings
from training.run import train
from training.tasks import Example, load_examples, load_task


class CapitalsPredictor(FakePredictor):
    """Features of a text: its length, and how many capitals it has."""

    def novelty_features(self, prompts):
        texts = ["".join(map(chr, p.prompt_ids)) for p in prompts]
        return torch.tensor([[len(t), sum(c.isupper() for c in t), 1.0] for t in texts])


def test_all_spellings_of_an_example_are_on_one_side_of_the_split():
    trained = [Example({"text": "a film " + "x" * n}, "positive") for n in range(9)]
    held_out = [
        Example({"text": "so long a film that i slept " + "y" * n}, "negative") for n in (0, 9)
    ]
    predictor = CapitalsPredictor()
    fitted = fit_novelty(predictor, trained, held_out)
    assert len(fitted.calibration) == 2, (
        "one score for each held-out example, not for each spelling"
    )
    in_turn = sum(1 + (i % VARIANTS > 0) for i in range(9))
    assert len(predictor.encoded) == in_turn + 2 * VARIANTS, "two to fit, all to calibrate"
    by_spelling = [
        fitted.scores(predictor.novelty_features([predictor.encode(one.input["text"])])).item()
        for one in spellings(held_out[0])
    ]
    assert by_spelling.index(max(by_spelling)) == VARIANTS - 1, "So Long A Film: seven capitals"
    assert fitted.calibration.tolist()[0] == pytest.approx(max(by_spelling))


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

    result = CliRunner().invoke(
        app, ["novelty", str(adapter), *arguments, *base, "--augment", "none"]
    )
    assert result.exit_code == 0, result.output
    plain = read_adapter(adapter).novelty
    assert plain is not None
    assert len(plain.calibration) == 6
    assert plain.mean.tolist() != pytest.approx(again.mean.tolist(), rel=1e-3)

    manifest = json.loads((adapter / "dalorra.json").read_text())
    examples = load_examples(load_task(task), "train", files / "data")
    trained, held_out = trained_and_held_out(manifest["training"], examples)
    assert (len(trained), len(held_out)) == (18, 6)
    with pytest.raises(ConfigError, match="not the examples that the adapter was trained on"):
        trained_and_held_out(manifest["training"], examples[1:])
    with pytest.raises(ConfigError, match="does not say which examples"):
        trained_and_held_out({}, examples)
