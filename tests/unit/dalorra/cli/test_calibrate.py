"""`dalorra calibrate`, on labelled data and on the feedback that a server was given."""

import types
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dalorra.cli import app
from dalorra.decision.policy import Policy
from dalorra.decision.policy_digest import checked
from service.feedback.records import KeptAnswer, Source
from service.feedback.store import FeedbackStore
from tests.labelled_world import LABELS, accepted, predictions, world

BANK = {"samples": 5, "seed": 0, "sampler": "iid"}


@pytest.fixture
def adapter(monkeypatch, tmp_path) -> Path:
    """The folder of a fake adapter that was trained on sst2, and whose base must not be loaded."""
    manifest = types.SimpleNamespace(
        training={"task": "sst2"},
        bank=types.SimpleNamespace(identity=BANK, samples=5),
        prompt=None,
        labelled=types.SimpleNamespace(labels=dict.fromkeys(LABELS, "")),
    )
    read = types.SimpleNamespace(manifest=manifest, novelty=None, policy=None, digest="d" * 64)
    monkeypatch.setattr("dalorra.adapter.directory.read_adapter", lambda _, **__: read)
    monkeypatch.setattr(
        "dalorra.predictor.Predictor.load", lambda *_, **__: pytest.fail("it loads the model")
    )
    folder = tmp_path / "adapter"
    folder.mkdir()
    return folder


@pytest.fixture
def on_examples(monkeypatch, adapter):
    """`dalorra calibrate` with n labelled inputs."""

    def run(n, *arguments):
        predictor, examples = world(n)
        monkeypatch.setattr("dalorra.predictor.Predictor.load", lambda *_, **__: predictor)
        monkeypatch.setattr("training.tasks.load_examples", lambda *_, **__: examples)
        return CliRunner().invoke(app, ["calibrate", str(adapter), *arguments])

    return run


@pytest.fixture
def on_feedback(adapter):
    """`dalorra calibrate --from-feedback` with a feedback store."""

    def run(store, *arguments):
        command = ["calibrate", str(adapter), "--target-error", "0.05", "--from-feedback"]
        return CliRunner().invoke(app, [*command, str(store), *arguments])

    return run


def test_the_command_writes_the_policy_and_prints_the_promise(on_examples, adapter):
    result = on_examples(
        3000, "--target-error", "0.05", "--class-target", "yes=0.06", "--temperature", "on"
    )
    assert result.exit_code == 0, result.output
    policy = Policy.load(adapter)
    assert not policy.never_accepts
    assert checked(policy, hand_made=False) is policy
    assert policy.class_targets == {"yes": 0.06}
    assert policy.bank == BANK
    assert policy.temperature != 1.0
    assert policy.source.startswith("sst2 validation: ")
    assert result.stdout.startswith(
        "error among accepted answers ≤ 0.05 with 95 % confidence over the draw of 2,700 test"
    )
    last = result.stdout.splitlines()[-1]
    assert last.startswith("of texts of 16 kinds, most of them not its own, "), last


def test_the_command_exits_with_3_when_nothing_qualifies(on_examples, adapter, tmp_path):
    out = tmp_path / "policy.json"
    result = on_examples(60, "--target-error", "0.01", "--out", str(out), "--confidence", "0.9")
    assert result.exit_code == 3
    assert "NOTHING IS ACCEPTED" in result.stderr
    assert not result.stdout
    assert Policy.load(out).never_accepts
    assert not (adapter / "policy.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target-error", "0.05", "--cost", "yes=much"), "--cost yes=much is no number"),
        (("--target-error", "0.05", "--class-target", "yes"), "write --class-target name=value"),
        (("--target-error", "5"), "target_error 5 is not between 0 and 1"),
        (("--target-error", "0.05", "--split", "train"), "was trained on that split"),
    ],
)
def test_the_command_refuses_in_one_sentence(on_examples, adapter, arguments, message):
    result = on_examples(60, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (adapter / "policy.json").exists()


def test_a_second_look_at_the_same_data_is_refused_or_paid_for(on_examples, adapter):
    first = on_examples(1000, "--target-error", "0.1")
    assert first.exit_code == 0, first.output
    policy = Policy.load(adapter)
    same = on_examples(1000, "--target-error", "0.1")
    assert same.stdout == first.stdout, "no second look"
    refused = on_examples(1000, "--target-error", "0.2")
    assert refused.exit_code == 2
    assert "1,000 of these 1,000 inputs were tested on before" in refused.stderr
    assert "(sst2 validation, " in refused.stderr
    again = Policy.load(adapter)
    assert again == policy.model_copy(update={"date": again.date, "digest": again.digest})
    paid = on_examples(1000, "--target-error", "0.2", "--look-again")
    assert paid.stdout.startswith("error among accepted answers ≤ 0.2 with 90 % confidence")
    assert Policy.load(adapter).confidence == 0.9


@pytest.mark.parametrize(
    "option",
    [
        ("--temperature", "off"),
        ("--confidence", "0.9"),
        ("--class-target", "yes=0.3"),
        ("--cost", "yes=2"),
        ("--dtype", "float32"),
    ],
)
def test_whatever_changes_the_outcome_makes_it_another_look(on_examples, option):
    on_examples(100, "--target-error", "0.3")
    refused = on_examples(100, "--target-error", "0.3", *option)
    assert refused.exit_code == 2
    assert "were tested on before" in refused.stderr


@pytest.fixture
def judged(tmp_path):
    """`judged(3000)`: a feedback store of an adapter that answered so many inputs, and it."""

    def write(n, keep=lambda _prediction: True, **source):
        predictor, examples = world(n)
        predictor.policy = Policy.never()
        path = tmp_path / "feedback.sqlite"
        store = FeedbackStore(path)
        number = store.source_id(
            Source(source.get("digest", "d" * 64), "{}", Policy.never().model_dump_json(), None)
        )
        answers = predictions(predictor, examples)
        with store.transaction():
            for i, (p, example) in enumerate(zip(answers, examples, strict=True)):
                kept = KeptAnswer(
                    f"r{i:06}", 0.0, p.label, p.probability, p.variance, p.novelty, p.cut_at, 5,
                    "clarify", False, None,
                )  # fmt: skip
                store.add(number, [kept])
                if keep(p):
                    store.judge(f"r{i:06}", "", example.label, 1.0)
        store.close()
        return path

    return write


def test_feedback_calibrates_without_inputs_or_model(judged, on_feedback, adapter):
    result = on_feedback(judged(3000))
    assert result.exit_code == 0, result.output
    policy = Policy.load(adapter)
    assert policy.source.startswith("feedback: the first 30 answers to declare the thresholds")
    assert (policy.adapter_digest, policy.n) == ("d" * 64, 2970)
    assert policy.bank == BANK
    assert policy.path
    fresh, new = world(20_000, seed=1)
    fresh.policy = policy
    taken = accepted(fresh, new)
    assert len(taken) / len(new) == pytest.approx(policy.accepted, abs=0.03)
    assert np.mean([p.label != label for p, label in taken]) <= 0.05


def test_where_only_sure_answers_are_judged_nothing_looser_is_chosen(judged, on_feedback, adapter):
    result = on_feedback(judged(6000, lambda p: p.probability >= 0.97 and p.variance <= 0.002))
    assert result.exit_code == 0, result.output
    policy = Policy.load(adapter)
    assert policy.min_probability >= 0.97
    assert policy.max_variance <= 0.002


def test_feedback_may_be_looked_at_again_when_there_is_more(judged, on_feedback, adapter, tmp_path):
    assert on_feedback(judged(1000)).exit_code == 0
    (tmp_path / "feedback.sqlite").unlink()
    later = on_feedback(judged(3000))
    assert later.exit_code == 0, later.output
    assert Policy.load(adapter).confidence == 0.95
    refused = on_feedback(tmp_path / "feedback.sqlite", "--class-target", "yes=0.05")
    assert refused.exit_code == 2
    assert "3,000 of these 3,000 inputs were tested on before" in refused.stderr


def test_feedback_that_shows_nothing_exits_with_3(judged, on_feedback, adapter):
    result = on_feedback(judged(40))
    assert result.exit_code == 3
    assert Policy.load(adapter).never_accepts


def test_feedback_of_another_adapter_is_refused(judged, on_feedback):
    result = on_feedback(judged(40, digest="e" * 64))
    assert result.exit_code == 2
    assert "no judged answers of adapter dddddddddddd…" in result.stderr
    assert "it has those of eeeeeeeeeeee…" in result.stderr


@pytest.mark.parametrize(
    "option", [("--temperature", "on"), ("--data", "x.jsonl"), ("--split", "test")]
)
def test_feedback_and_data_exclude_each_other(judged, on_feedback, adapter, option):
    result = on_feedback(judged(40), *option)
    assert result.exit_code == 2
    assert "--from-feedback brings labelled answers as they were served" in result.stderr
    assert not (adapter / "policy.json").exists()
