"""`dalorra calibrate --question`: one question of an adapter for questions, word for word."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from dalorra.adapter.directory import read_adapter
from dalorra.base.model import BaseModel, load_base_model
from dalorra.cli import app
from dalorra.decision.policy import Policy
from dalorra.decision.question_policies import (
    QUESTION_POLICIES_FILE,
    keep_question_policy,
    read_question_policies,
)
from dalorra.errors import AdapterError
from dalorra.predictor import Predictor
from dalorra.question_prompts import QuestionFormat
from dalorra.questions import Asked, Option, Question
from tests.tiny import predictor_on, save_tiny_adapter, tiny_base, tiny_base_model

ASKED = {
    "type": "choice",
    "instructions": "Which team?",
    "criteria": {"sales": None, "repairs": "what is broken", "nobody": None},
}
QUESTION = Question(
    "choice",
    "Which team?",
    (Option("sales"), Option("repairs", "what is broken"), Option("nobody")),
)
OTHER = Question.noul("Is it broken?")
STATES: list[object] = [f"Ticket {n}" for n in range(90)] + [{"ticket": n} for n in range(30)]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> tuple[Path, BaseModel]:
    folder = tiny_base_model(tmp_path_factory.mktemp("base"))
    return folder, load_base_model(str(folder), dtype="float32")


@pytest.fixture
def adapter(tmp_path, base) -> Path:
    prompt = QuestionFormat()
    return save_tiny_adapter(tmp_path / "adapter", base[1], prompt=prompt, max_tokens=500)


def labelled(folder: Path, predictor: Predictor, wrong: int = 0) -> Path:
    """What the adapter itself answers, so that it is right about all but the first few."""
    lines = []
    for number, state in enumerate(STATES):
        text = state if isinstance(state, str) else json.dumps(state)
        (answer,) = predictor.predict([predictor.encode(Asked(text, QUESTION))])
        others = [name for name in answer.probabilities if name != answer.label]
        label = others[0] if number < wrong else answer.label
        lines.append(json.dumps({"state": state, "label": label}))
    path = folder / "labelled.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def calibrate(adapter: Path, base: Path, data: Path, *arguments: str, asked: object = ASKED):
    question = adapter.parent / "question.yaml"
    question.write_text(yaml.safe_dump(asked, sort_keys=False))
    command = ["calibrate", str(adapter), "--question", str(question), "--data", str(data)]
    options = ["--target-error", "0.1", "--base-model", str(base), "--dtype", "float32"]
    return CliRunner().invoke(app, [*command, *options, "--device", "cpu", *arguments])


def test_a_question_gets_thresholds_with_a_promise_of_its_own(adapter, base):
    path = labelled(adapter.parent, predictor_on(adapter, base[1]))
    done = calibrate(adapter, base[0], path)
    assert done.exit_code == 0, done.output
    assert "error among accepted answers ≤ 0.1 with 95 % confidence" in done.output
    predictor = predictor_on(adapter, base[1])
    own = predictor.policy_for(Asked("Ticket 7", QUESTION))
    assert (own.target_error, own.confidence, own.never_accepts) == (0.1, 0.95, False)
    assert "labelled.jsonl, answers to 'Which team?'" in own.source
    assert predictor.policy_for(predictor.encode(Asked("Ticket 7", QUESTION))) is own
    assert predictor.policy_for(Asked("Ticket 7", OTHER)) is predictor.policy
    assert predictor.policy.never_accepts
    turned = Question("choice", QUESTION.instructions, QUESTION.options[::-1])
    assert predictor.policy_for(Asked("Ticket 7", turned)) is own
    for question in (
        Question("choice", "Which Team?", QUESTION.options),
        Question("choice", QUESTION.instructions, QUESTION.options[:2]),
    ):
        assert predictor.policy_for(Asked("Ticket 7", question)) is predictor.policy


def test_its_temperature_is_served_to_it_alone(adapter, base):
    plain = predictor_on(adapter, base[1])
    path = labelled(adapter.parent, plain, wrong=40)
    done = calibrate(adapter, base[0], path, "--temperature", "on", "--target-error", "0.6")
    assert done.exit_code == 0, done.output
    tempered = predictor_on(adapter, base[1])
    assert tempered.policy_for(Asked("", QUESTION)).temperature > 1.0
    for question, same in ((QUESTION, False), (OTHER, True)):
        one, other = (
            predictor.predict([predictor.encode(Asked("Ticket 7", question))])[0]
            for predictor in (plain, tempered)
        )
        assert (one.probabilities == other.probabilities) is same
    again = calibrate(adapter, base[0], path, "--temperature", "on", "--target-error", "0.6")
    assert again.exit_code == 0  # on the plain probabilities, as the first time
    kept = read_question_policies(adapter)
    assert kept[QUESTION.digest].question.digest == QUESTION.digest
    assert tempered.policy_for(Asked("", QUESTION)).temperature == (
        kept[QUESTION.digest].policy.temperature
    )


def test_a_question_that_is_mostly_answered_wrongly_is_accepted_never(adapter, base):
    path = labelled(adapter.parent, predictor_on(adapter, base[1]), wrong=100)
    done = calibrate(adapter, base[0], path)
    assert done.exit_code == 3
    assert predictor_on(adapter, base[1]).policy_for(Asked("", QUESTION)).never_accepts


def test_policies_of_another_adapter_or_precision_are_void(tmp_path, adapter, base):
    keep_question_policy(adapter, OTHER, Policy.never("another" * 9, "x"))
    good = Policy(
        min_probability=0.5,
        max_variance=0.2,
        source="x",
        target_error=0.1,
        confidence=0.95,
        precisions=("bfloat16 on cuda",),
        adapter_digest=read_adapter(adapter).digest,
    )
    keep_question_policy(adapter, QUESTION, good)
    predictor = predictor_on(adapter, base[1])
    other, own = (predictor.policy_for(Asked("", one)) for one in (OTHER, QUESTION))
    assert "made for another adapter" in other.source
    assert own.never_accepts
    assert "tested in bfloat16 on cuda" in own.source
    (adapter / QUESTION_POLICIES_FILE).write_text('[{"kind": "noul"}]')
    with pytest.raises(AdapterError, match=r"question_policies.json is not valid: 0.instructions"):
        read_adapter(adapter)


@pytest.mark.parametrize(
    ("asked", "record", "message"),
    [
        ({"type": "choice", "instructions": "x"}, None, "criteria: Field required"),
        ({"type": "guess"}, None, "'type' does not match"),
        ({"type": "choice", "instructions": "x", "criteria": {"a": None}}, None, "criteria"),
        (ASKED, {"state": "x", "label": "cooking"}, "row 1: column 'label' holds 'cooking'"),
        (ASKED, {"text": "x", "label": "sales"}, "row 1: no column 'state'"),
        (ASKED, {"state": "x"}, "row 1: no column 'label'"),
    ],
)
def test_a_mistake_is_named(adapter, base, asked, record, message):
    path = adapter.parent / "bad.jsonl"
    path.write_text(json.dumps(record or {"state": "x", "label": "sales"}) + "\n")
    done = calibrate(adapter, base[0], path, asked=asked)
    assert done.exit_code == 2, done.output
    assert message in done.output.replace("\n", " ")
    assert not (adapter / QUESTION_POLICIES_FILE).exists()


def test_it_needs_data_and_an_adapter_for_questions(tmp_path, adapter, base):
    done = calibrate(adapter, base[0], adapter.parent / "none.jsonl")
    assert "is no file" in done.output
    plain = save_tiny_adapter(tmp_path / "plain", tiny_base())
    (tmp_path / "question.yaml").write_text(yaml.safe_dump(ASKED))
    done = calibrate(plain, base[0], adapter.parent / "none.jsonl")
    assert done.exit_code == 2
    assert "has labels of its own and answers no other questions" in done.output.replace("\n", " ")
