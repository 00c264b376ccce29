import json
import math

import numpy as np
import pytest
from matplotlib.image import imread

from dalorra.decision.policy import Policy
from dalorra.decision.predictive import Prediction
from dalorra.errors import ConfigError, InputError
from tests.fakes import CUE, FakePredictor
from training.answers import WINDOW
from training.evaluate import evaluate, score
from training.report import write_model_card
from training.tasks import Example

LABELS = ("no", "yes")

# input → (probability of "yes" by the samples, its variance, and by the mean mask)
ANSWERS = {
    "sure and right": (0.95, 0.001, 0.99),
    "sure": (0.05, 0.002, 0.01),
    "sure and wrong, which is a long text": (0.90, 0.040, 0.97),
    "torn": (0.40, 0.003, 0.55),
}
FAMILIAR = {"torn": 0.8}
"""Novelty p-values; others are 0.1."""
TRUTH = ("yes", "no", "no", "yes")
EXAMPLES = [Example({"text": text}, label) for text, label in zip(ANSWERS, TRUTH, strict=True)]


def prediction(yes, variance=0.0, samples=1, novelty=0.1):
    label = LABELS[yes > 0.5]
    return Prediction(
        label, max(yes, 1 - yes), variance, {"no": 1 - yes, "yes": yes}, 0, 0, samples,
        novelty=novelty,
    )  # fmt: skip


POLICY = Policy(min_probability=0.9, max_variance=0.01, source="a test")


class TablePredictor(FakePredictor):
    """Answers as `ANSWERS` says."""

    labels = LABELS

    def __init__(self, fields=("sentence",)):
        super().__init__(fields, policy=POLICY, digest="0" * 64)

    def predict(self, prompts):
        self.batches.append(prompts)
        return [
            prediction(yes, variance, 10, FAMILIAR.get(text_of(prompt), 0.1))
            for prompt in prompts
            for yes, variance, _ in [answer_to(prompt)]
        ]

    def predict_mean(self, prompts):
        return [prediction(mean) for _, _, mean in map(answer_to, prompts)]


def answer_to(prompt):
    return ANSWERS[text_of(prompt)]


def text_of(prompt):
    return "".join(map(chr, prompt.prompt_ids))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation") / "out"
    result = evaluate(TablePredictor(), EXAMPLES, out, task="toy", seeds={"bank": 3}, quiet=True)
    return result, out


def test_scores_worked_by_hand(run):
    result, _ = run
    assert result["n"] == 4
    assert result["accuracy"] == 0.5
    # confidences 0.95 and 0.95 right (bin 15), 0.90 wrong (bin 14), 0.60 wrong (bin 9, its edge)
    assert result["ece"] == pytest.approx((2 * 0.05 + 0.90 + 0.60) / 4)
    assert result["nll"] == pytest.approx(
        -(2 * math.log(0.95) + math.log(0.10) + math.log(0.40)) / 4
    )
    assert result["brier"] == pytest.approx(2 * (2 * 0.05**2 + 0.9**2 + 0.6**2) / 4)
    assert result["auroc_variance"] == 1.0
    assert result["auroc_confidence"] == 1.0
    # ranks 1, 2, 4, 3 of the variance against 1.5, 1.5, 3.5, 3.5 of the error
    assert result["spearman_variance"] == pytest.approx(2 / math.sqrt(5))
    assert result["aurc_variance"] == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert result["acceptance"] == {"0.01": 0.5, "0.02": 0.5, "0.05": 0.5, "0.1": 0.5}
    assert result["acceptance_variance"] == result["acceptance"]
    assert [group["error"] for group in result["error_by_variance"]] == [0, 0, 1, 1]


def test_the_mean_mask_is_scored_on_its_own(run):
    mean = run[0]["mean_mask"]
    assert mean["accuracy"] == 0.75
    assert mean["nll"] == pytest.approx(-(2 * math.log(0.99) + math.log(0.03) + math.log(0.55)) / 4)
    assert "auroc_variance" not in mean


def test_each_decision_is_counted(run):
    decisions = run[0]["decisions"]
    # Of 2 right of 2, and 0 right of 1: (α / 2)^(1 / 2) and 1 − α / 2.
    assert [part["interval"] for part in decisions.values()] == [
        pytest.approx([0.025**0.5, 1.0]), *[pytest.approx([0.0, 0.975])] * 2,
    ]  # fmt: skip
    rest = {
        name: {key: value for key, value in part.items() if key != "interval"}
        for name, part in decisions.items()
    }
    assert rest == {
        "accept": {"n": 2, "share": 0.5, "error": 0.0, "accuracy": 1.0},
        "escalate": {"n": 1, "share": 0.25, "error": 1.0, "accuracy": 0.0},
        "clarify": {"n": 1, "share": 0.25, "error": 1.0, "accuracy": 0.0},
    }


def test_the_record_says_what_was_measured_with_what(run):
    result, out = run
    assert json.loads((out / "metrics.json").read_text()) == result
    assert (result["task"], result["samples"], result["seeds"]) == ("toy", 10, {"bank": 3})
    assert (result["adapter_digest"], result["scope"]) == ("0" * 64, "answer_tokens")
    assert {"python", "torch", "numpy"} <= set(result["versions"])
    assert result["hardware"]["cores"] >= 1
    assert result["seconds"]["sampled"] >= 0


def test_predictions_are_in_the_order_of_the_examples(run):
    lines = [json.loads(line) for line in (run[1] / "predictions.jsonl").read_text().splitlines()]
    assert [line["input"]["text"] for line in lines] == list(ANSWERS)
    assert [line["probabilities"]["yes"] for line in lines] == [a[0] for a in ANSWERS.values()]
    assert [line["correct"] for line in lines] == [True, True, False, False]
    assert [line["decision"] for line in lines] == ["accept", "accept", "escalate", "clarify"]
    assert lines[3]["mean_mask"] == {"label": "yes", "probabilities": {"no": 1 - 0.55, "yes": 0.55}}
    assert lines[3]["true_label"] == "yes"
    assert lines[3]["label"] == "no"


@pytest.mark.parametrize(
    "name", ["reliability.png", "risk_coverage.png", "acceptance.png", "decisions.png"]
)
def test_figures_are_drawn_on_white(run, name):
    pixels = imread(run[1] / name)[..., :3]
    assert min(pixels.shape[:2]) > 350
    assert (pixels[0, 0] == 1.0).all()
    blue = np.array([0x00, 0x72, 0xB2]) / 255
    assert (np.abs(pixels - blue).max(axis=-1) < 0.01).sum() > 100


def test_the_predictor_gets_many_examples_at_once_and_the_longest_first():
    predictor = TablePredictor()
    evaluate(predictor, EXAMPLES * 80, quiet=True)
    lengths = [prompt.tokens for window in predictor.batches for prompt in window]
    assert [len(window) for window in predictor.batches] == [WINDOW, 320 - WINDOW]
    assert lengths == sorted(lengths, reverse=True)


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate(TablePredictor(), EXAMPLES, quiet=True)
    assert not list(tmp_path.iterdir())


def test_scores_that_do_not_exist_are_null(tmp_path):
    result = evaluate(TablePredictor(), EXAMPLES[:1], tmp_path, quiet=True)
    assert result["accuracy"] == 1.0
    assert result["auroc_variance"] is None
    assert result["spearman_variance"] is None
    assert result["decisions"]["clarify"] == {
        "n": 0, "share": 0.0, "error": None, "accuracy": None, "interval": [0.0, 1.0],
    }  # fmt: skip
    assert "NaN" not in (tmp_path / "metrics.json").read_text()


def test_a_label_the_adapter_cannot_answer_is_refused():
    predictor = TablePredictor()
    with pytest.raises(ConfigError, match=r"example 2 has the label 'maybe'.*no, yes"):
        evaluate(predictor, [EXAMPLES[0], Example({"text": "torn"}, "maybe")], quiet=True)
    assert predictor.batches == []
    with pytest.raises(ConfigError, match="no examples"):
        evaluate(predictor, [], quiet=True)


def test_an_input_that_does_not_fit_is_named():
    with pytest.raises(InputError, match="example 2: input is empty"):
        evaluate(TablePredictor(), [EXAMPLES[0], Example({"text": ""}, "no")], quiet=True)


def test_inputs_with_several_fields_are_sent_by_name(monkeypatch):
    monkeypatch.setitem(ANSWERS, "ab", (0.9, 0.0, 0.9))
    examples = [Example({"second": "b", "first": "a"}, "yes")]
    result = evaluate(TablePredictor(fields=("first", "second")), examples, quiet=True)
    assert result["accuracy"] == 1.0


def test_truncated_inputs_are_counted(monkeypatch):
    monkeypatch.setattr(TablePredictor, "max_tokens", len("sure") + len(CUE))
    result = evaluate(TablePredictor(), [EXAMPLES[0], EXAMPLES[1]], quiet=True)
    assert result["truncated"] == 1


def test_inputs_that_were_trained_on_are_counted_whatever_their_label(capsys):
    other = "no" if EXAMPLES[0].label == "yes" else "yes"
    seen = [Example(EXAMPLES[0].input, other), EXAMPLES[2], Example({"text": "new"}, "no")]
    result = evaluate(TablePredictor(), EXAMPLES, task="toy", used=seen)
    assert result["used"] == 2
    counted = "toy: 4 examples, 2 with inputs that it was trained, selected or calibrated on"
    assert counted in " ".join(capsys.readouterr().out.split())
    assert evaluate(TablePredictor(), EXAMPLES, quiet=True)["used"] == 0


def test_the_table_shows_both_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    evaluate(TablePredictor(), EXAMPLES, task="toy")
    out = capsys.readouterr().out
    assert "fake-adapter on toy: 4 examples" in out
    (line,) = [line for line in out.splitlines() if "accuracy" in line]
    assert "50.0 %" in line
    assert "75.0 %" in line
    (line,) = [line for line in out.splitlines() if "AUROC of variance" in line]
    assert "1.000" in line
    (line,) = [line for line in out.splitlines() if "escalate" in line]
    assert "25.0 %, 0.0 %" in line


def test_scores_tell_more_than_two_labels_apart():
    predictions = [
        Prediction("b", 0.5, 0.0, {"a": 0.2, "b": 0.5, "c": 0.3}, 0, 0, 1),
        Prediction("c", 0.6, 0.0, {"a": 0.3, "b": 0.1, "c": 0.6}, 0, 0, 1),
    ]
    result = score(predictions, ["b", "a"])
    assert result["accuracy"] == 0.5
    assert result["nll"] == pytest.approx(-(math.log(0.5) + math.log(0.3)) / 2)


MANIFEST = {
    "name": "toy-adapter",
    "method": "dalorra",
    "method_parameters": {"prior": 0.5, "temperature": 0.1},
    "scope": "answer_tokens",
    "base_model": {"name": "tiny", "digest": "f" * 64},
    "prompt": {
        "template": "Is it | {text}",
        "answer_cue": "\nAnswer:",
        "labels": {"no": " no", "yes": " yes"},
    },
    "bank": {"samples": 10, "seed": 0, "sampler": "iid"},
    "max_tokens": 300,
    "training": {
        "examples": 4000,
        "held_out": 500,
        "calibration": 1000,
        "config": {"data": {"augment": "orthography"}, "evaluation": {"novelty": True}},
    },
}


def test_the_model_card(run, tmp_path):
    card = write_model_card(tmp_path, MANIFEST, run[0]).read_text()
    assert card.startswith('---\nlibrary_name: peft\nbase_model: "tiny"\n')
    assert "# toy-adapter" in card
    assert "| accuracy | 50.0 % | 75.0 % |" in card
    assert "| Prompt | `Is it \\| {text}\\nAnswer:` |" in card
    assert "prior 0.5, temperature 0.1" in card
    assert "at least 0.9 and the variance" in card
    assert "| escalate | 25.0 % | 100.0 % |" in card
    assert "![Reliability diagram](reliability.png)" in card
    assert imread(tmp_path / "reliability.png").ndim == 3


def test_the_card_says_what_was_chosen_on_which_examples(run, tmp_path):
    card = write_model_card(tmp_path, MANIFEST, {**run[0], "used": 2}).read_text()
    assert "| 4,000 | trained on, in 6 spellings each | the weights and the posterior |" in card
    assert "| 500 | held out, in one of 6 spellings each | the checkpoint, and what" in card
    assert "| 1,000 | set aside, in one of 6 spellings each | the thresholds |" in card
    assert "| 4 | toy | nothing, but 2 of them are among the others |" in card

    config = {"data": {}, "evaluation": {"novelty": False}}
    plain = {**MANIFEST["training"], "calibration": 0, "config": config}
    card = write_model_card(tmp_path, {**MANIFEST, "training": plain}, run[0]).read_text()
    assert "| 500 | held out | the checkpoint |" in card
    assert "the thresholds |" not in card
    assert "| 4 | toy | nothing |" in card


def test_inputs_out_of_scope_are_counted_apart(run, tmp_path, capsys):
    outside = [Example({"text": text}, "other") for text in ("sure and right", "torn", "torn")]
    found = evaluate(TablePredictor(), EXAMPLES, outside=outside)
    counted = found.pop("out_of_scope")
    assert (counted["n"], counted["accepted"]) == (3, pytest.approx(1 / 3))
    assert counted["auroc_confidence"] == pytest.approx((1 + 2 * 3.5) / 12)
    for name in ("accuracy", "decisions", "auroc_variance", "n"):
        assert found[name] == run[0][name], "other scores are without them"
    assert "out of scope, 3: accepted" in capsys.readouterr().out
    card = write_model_card(tmp_path, MANIFEST, {**run[0], "out_of_scope": counted}).read_text()
    assert "Of 3 inputs that no label answers it accepts 33.3 %" in card
    assert "(95 % interval 0.8 % to 90.6 %)." in card


def test_the_card_of_an_adapter_that_never_accepts(run, tmp_path):
    metrics = {**run[0], "policy": Policy.never().model_dump()}
    card = write_model_card(tmp_path, MANIFEST, metrics).read_text()
    assert "Nothing is accepted (no thresholds have been picked)." in card
