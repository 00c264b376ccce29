"""A run ends with novelty features, and the command line fits them again."""

import json

import pytest
import torch
from typer.testing import CliRunner

from dalorra.adapter.directory import read_adapter
from dalorra.cli import app
from dalorra.decision.novelty import NOVELTY_FILE, Novelty
from dalorra.errors import ConfigError
from dalorra.predictor import Predictor
from tests.fakes import FakePredictor
from tests.tiny import answer
from training.novelty import OF_A_CLASS, fit_novelty, novelty_limit, trained_and_held_out
from training.off_domain import (
    accepted_by_kind,
    off_domain_in_words,
    off_domain_prompts,
    off_domain_texts,
)
from training.orthography import VARIANTS, spellings
from training.run import train
from training.tasks import Example, load_examples, load_task


class CapitalsPredictor(FakePredictor):
    """Features of a text: its length, and how many capitals it has."""

    def novelty_features(self, prompts):
        texts = ["".join(map(chr, p.prompt_ids)) for p in prompts]
        found = [[[len(t), sum(c.isupper() for c in t), 1.0]] for t in texts]
        return torch.tensor(found)  # at one depth


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
    foreign = off_domain_texts()
    assert fitted.foreign.shape == (len(foreign), len(foreign["news"]))
    asked = len(predictor.encoded) - fitted.foreign.numel()
    assert asked == in_turn + 2 * VARIANTS, "two to fit, all to calibrate"
    by_spelling = [
        fitted.scores(predictor.novelty_features([predictor.encode(one.input["text"])])).item()
        for one in spellings(held_out[0])
    ]
    assert by_spelling.index(max(by_spelling)) == VARIANTS - 1, "So Long A Film: seven capitals"
    assert fitted.calibration.tolist()[0] == pytest.approx(max(by_spelling))


def test_rare_labels_are_among_the_reference_too():
    trained = [Example({"text": "common " + "x" * n}, "often") for n in range(100)]
    trained += [Example({"text": "RARE " + "y" * n}, "rarely") for n in range(12)]
    trained += [Example({"text": "UNIQUE TEXTS " + "z" * n}, "hardly") for n in range(3)]
    predictor = CapitalsPredictor()
    fitted = fit_novelty(predictor, trained, trained[:2], augment="none", limits=(20, 2))
    assert fitted.centres.shape == (3, 1, 3)
    texts = [one if isinstance(one, str) else "".join(one.values()) for one in predictor.encoded]
    counts = [sum(text.startswith(start) for text in texts) for start in ("common", "RARE", "UNIQ")]
    assert counts[1:] == [OF_A_CLASS, 3]
    assert 10 <= counts[0] <= 20 + 2


def test_a_limit_on_novelty_says_what_it_promises():
    scores = torch.arange(300.0)
    novelty = Novelty(torch.zeros(1, 1), torch.ones(1, 1, 1), scores, torch.empty(0, 0), "")
    level, said = novelty_limit(novelty, 0.01, 0.95)
    assert level == novelty.level(0.01, 0.95)
    assert said == (
        "usual inputs that are escalated for novelty ≤ 0.01 with 95 % confidence over the draw of "
        "300 held-out examples"
    )
    picked, said = novelty_limit(novelty, None, 0.95)
    assert picked == novelty.pick(0.95)[1]
    assert said.startswith("usual inputs that are escalated for novelty ≤ 0.02 ")
    assert novelty_limit(novelty, 0.0, 0.95) == novelty_limit(None, None, 0.95) == (0.0, "")
    with pytest.raises(ConfigError, match="needs novelty features"):
        novelty_limit(None, 0.01, 0.95)


def test_the_off_domain_texts_are_many_and_differ():
    kinds = off_domain_texts()
    assert len({len(texts) for texts in kinds.values()}) == 1, "one tensor holds their scores"
    texts = [text for some in kinds.values() for text in some]
    assert len(set(texts)) == len(texts) >= 150


def test_what_is_accepted_of_them_is_told_by_kind():
    two = FakePredictor(fields=("subject", "body"))
    assert {len(some) for some in off_domain_prompts(two).values()} == {12}
    assert two.encoded[0]["subject"] == two.encoded[0]["body"] == off_domain_texts()["news"][0]

    class NewsPredictor(FakePredictor):
        """Sure of news alone."""

        def predict(self, prompts):
            sure = {tuple(map(ord, text)) for text in off_domain_texts()["news"]}
            return [answer(0.99 if p.prompt_ids in sure else 0.5, 0.0) for p in prompts]

    found = accepted_by_kind(NewsPredictor())
    assert found == {kind: float(kind == "news") for kind in off_domain_texts()}
    assert off_domain_in_words(found) == (
        "of texts of 16 kinds, most of them not its own, 6% are accepted: news 100%"
    )
    assert off_domain_in_words(dict.fromkeys(found, 0.0)).endswith("0% are accepted")


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
    torch.testing.assert_close(again.calibration, fitted.calibration, rtol=1e-3, atol=1e-3)

    result = CliRunner().invoke(
        app, ["novelty", str(adapter), *arguments, *base, "--augment", "none"]
    )
    assert result.exit_code == 0, result.output
    plain = read_adapter(adapter).novelty
    assert plain is not None
    assert len(plain.calibration) == 6
    assert not torch.allclose(plain.mean, again.mean, rtol=1e-3)

    manifest = json.loads((adapter / "dalorra.json").read_text())
    examples = load_examples(load_task(task), "train", files / "data")
    trained, held_out = trained_and_held_out(manifest["training"], examples)
    assert (len(trained), len(held_out)) == (18, 6)
    with pytest.raises(ConfigError, match="not the examples that the adapter was trained on"):
        trained_and_held_out(manifest["training"], examples[1:])
    with pytest.raises(ConfigError, match="does not say which examples"):
        trained_and_held_out({}, examples)
