"""The manifest of an adapter that answers questions."""

import json
from pathlib import Path

import pytest

from dalorra.adapter.directory import read_adapter
from dalorra.adapter.manifest import MANIFEST_FILE, check_tokens
from dalorra.errors import AdapterError
from dalorra.prompts import PromptFormat
from dalorra.question_prompts import QuestionFormat, tokenizer_for
from tests.tiny import FORMAT, save_tiny_adapter, tiny_base

LETTERS = QuestionFormat(readout="letters", answer_cue="\nSentiment:")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_tiny_adapter(tmp_path / "adapter", tiny_base(), prompt=LETTERS)


def edit(folder: Path, **changes: object) -> None:
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_either_kind_of_prompt_is_read_as_what_it_was(tmp_path, saved):
    assert read_adapter(saved).manifest.prompt == LETTERS
    labelled = read_adapter(save_tiny_adapter(tmp_path / "other", tiny_base())).manifest
    assert labelled.prompt == labelled.labelled == FORMAT
    assert isinstance(labelled.prompt, PromptFormat)


def test_an_adapter_for_questions_has_no_labels_of_its_own(saved):
    with pytest.raises(AdapterError, match="tiny answers questions whose options come with them"):
        _ = read_adapter(saved).manifest.labelled


def test_a_damaged_format_is_named_by_its_place_in_the_file(saved):
    edit(saved, prompt=LETTERS.model_dump() | {"option": "- {name}"})
    with pytest.raises(AdapterError, match=r"prompt\.option: template"):
        read_adapter(saved)
    edit(saved, prompt=FORMAT.model_dump() | {"labels": {"one": 3, "two": " b"}})
    with pytest.raises(AdapterError, match=r"prompt\.labels\.one: "):
        read_adapter(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cue_tokens": [1, 2]}, "the answer cue is"),
        ({"label_tokens": {"yes": 1}}, "label 'yes' is token"),
    ],
)
def test_a_tokenizer_that_drifted_is_found_out(saved, changes, message):
    tokenizer = tokenizer_for(LETTERS, tiny_base().tokenizer, 64)
    check_tokens(read_adapter(saved).manifest, tokenizer)
    edit(saved, **changes)
    with pytest.raises(AdapterError, match=message):
        check_tokens(read_adapter(saved).manifest, tokenizer)


def test_the_letters_tokens_are_compared_too(saved):
    words = json.loads((saved / MANIFEST_FILE).read_text())["label_tokens"]
    assert set(words) >= {"yes", "no", "A", "Z"}
    edit(saved, label_tokens=words | {"Q": 3})
    with pytest.raises(AdapterError, match="label 'Q' is token"):
        check_tokens(
            read_adapter(saved).manifest, tokenizer_for(LETTERS, tiny_base().tokenizer, 64)
        )
