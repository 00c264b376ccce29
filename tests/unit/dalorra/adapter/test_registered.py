"""Questions in words that an adapter's labels answer: which they are, and where they are kept."""

import json
import re
from pathlib import Path

import pytest

from dalorra.adapter.directory import adapter_digest, bundled_adapter, read_adapter
from dalorra.adapter.registered import (
    QUESTIONS_FILE,
    RegisteredQuestion,
    read_registered,
    write_registered,
)
from dalorra.errors import AdapterError, ConfigError
from dalorra.questions import Option, Question
from tests.tiny import save_tiny_adapter, tiny_base

LABELS = ("negative", "positive")
IS_POSITIVE = RegisteredQuestion(instructions="Is this review positive?", yes="positive")


def choice(*names: str, description: str = "") -> Question:
    return Question(
        "choice", IS_POSITIVE.instructions, tuple(Option(name, description) for name in names)
    )


@pytest.mark.parametrize(
    ("question", "labels"),
    [
        (Question.noul("  is this REVIEW positive?\n"), ("positive", "negative")),
        (choice("positive", "negative"), ("positive", "negative")),
        (choice(" Negative", "POSITIVE"), LABELS),
        (Question.noul("Is this review positive"), None),
        (Question.noul("Is this review positive?", yes="very"), None),
        (choice("positive", "negative", description="so"), None),
        (choice("positive", "neutral"), None),
        (choice("positive", "negative", "neutral"), None),
        (
            Question("score", IS_POSITIVE.instructions, (Option("negative"), Option("positive"))),
            None,
        ),
    ],
)
def test_the_same_question_in_the_same_words(question: Question, labels: tuple[str, ...] | None):
    assert IS_POSITIVE.answers(question, LABELS) == labels


def test_without_a_yes_it_is_a_choice_alone():
    plain = RegisteredQuestion(instructions=IS_POSITIVE.instructions)
    assert plain.answers(Question.noul(IS_POSITIVE.instructions), LABELS) is None
    assert plain.answers(choice(*LABELS), LABELS) == LABELS


@pytest.mark.parametrize(
    ("labels", "text", "yes"),
    [
        (LABELS, "Is it positive?", "positive"),
        (LABELS, "Is it NEGATIVE?", "negative"),
        (LABELS, "Is it positive or negative?", None),
        (LABELS, "Is it nonnegative?", None),
        (("a", "b", "c"), "Is it a?", None),
    ],
)
def test_yes_is_the_label_that_the_question_names(
    labels: tuple[str, ...], text: str, yes: str | None
):
    assert RegisteredQuestion.about(labels, f" {text} ") == RegisteredQuestion(
        instructions=text, yes=yes
    )


@pytest.mark.parametrize(
    ("labels", "text", "yes", "says"),
    [
        (LABELS, "Is it good?", "good", "one of negative, positive"),
        (("a", "b", "c"), "Is it a?", "a", "ask it as a choice"),
        (LABELS, "  ", None, "empty"),
    ],
)
def test_what_cannot_be_answered_is_not_registered(
    labels: tuple[str, ...], text: str, yes: str | None, says: str
):
    with pytest.raises(ConfigError, match=says):
        RegisteredQuestion.about(labels, text, yes)


def test_the_file_is_read_with_the_adapter_and_not_part_of_its_digest(tmp_path: Path):
    save_tiny_adapter(tmp_path, tiny_base())
    digest = adapter_digest(tmp_path)
    assert read_adapter(tmp_path).registered == ()
    write_registered(tmp_path, [IS_POSITIVE])
    read = read_adapter(tmp_path)
    assert read.registered == (IS_POSITIVE,)
    assert read.digest == digest
    write_registered(tmp_path, [])
    assert not (tmp_path / QUESTIONS_FILE).exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not valid"),
        ('[{"instructions": ""}]', "0.instructions"),
        ('[{"instructions": "a", "no": "b"}]', "0.no"),
        ('[{"instructions": "Is it good?", "yes": "good"}]', "'Is it good?': no label is called"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str, says: str):
    (tmp_path / QUESTIONS_FILE).write_text(content)
    with pytest.raises(AdapterError, match=re.escape(says)) as caught:
        read_registered(tmp_path, LABELS)
    assert QUESTIONS_FILE in str(caught.value)


def test_the_bundled_adapter_has_one():
    labels = tuple(json.loads((bundled_adapter() / "dalorra.json").read_text())["prompt"]["labels"])
    assert read_registered(bundled_adapter(), labels) == (IS_POSITIVE,)
