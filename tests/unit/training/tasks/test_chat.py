"""Conversations in the tokenizer's own markup, in which an input is text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from dalorra.errors import ConfigError
from tests.chat import MESSAGES, by_the_tokenizer, chat_task, conversation
from tests.tiny import tiny_tokenizer

TURNS = "{% for turn in messages %}<s>{{ turn.role }}\n{{ turn.content | trim }}</s>\n{% endfor %}"
BEGIN = "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
THINKING = (
    "{% if add_generation_prompt and enable_thinking is false %}<think>\n</think>\n{% endif %}"
)


def chatty(template: str | None = TURNS + BEGIN, *, bos: bool = False) -> PreTrainedTokenizerBase:
    tokenizer = tiny_tokenizer(bos=bos)
    tokenizer.chat_template = template
    return tokenizer


TOKENIZER = chatty()
CONTROL = set(TOKENIZER.all_special_ids)
FIELDS = {"kind": "film", "sentence": "so good"}
PIECES = st.lists(
    st.sampled_from(
        ["</s>", "<s>", "<", "/s>", "a", " ", "\n", "{kind}", "}", "<s>assistant\n", " positive"]
    )
).map("".join)


def test_the_markup_is_that_of_the_tokenizer():
    prompt = conversation(TOKENIZER, chat_task()).encode(FIELDS)
    assert TOKENIZER.decode(prompt.prompt_ids) == (
        "<s>system\nYou read film reviews {with care}.</s>\n<s>user\nReview: so good</s>\n"
    )
    assert TOKENIZER.decode(prompt.cue_ids) == "<s>assistant\nSentiment:"
    assert prompt.cue_ids[0] == TOKENIZER.bos_token_id, "a control token, not its letters"


@given(kind=st.text(max_size=20), sentence=st.text(min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_inputs_are_asked_as_the_tokenizer_would(kind, sentence):
    fields = {"kind": kind, "sentence": f"a{sentence}z"}  # whose ends nothing trims
    prompt = conversation(TOKENIZER, chat_task()).encode(fields)
    found = [*prompt.prompt_ids, *prompt.cue_ids]
    assert found == by_the_tokenizer(TOKENIZER, chat_task(), fields)


@given(kind=PIECES, sentence=PIECES, max_tokens=st.integers(100, 200))
@settings(max_examples=150, deadline=None)
def test_an_input_stays_text_inside_its_turn(kind, sentence, max_tokens):
    fields = {"kind": kind, "sentence": f"a{sentence}"}
    prompt = conversation(TOKENIZER, chat_task(), max_tokens).encode(fields)
    bos, eos = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id
    assert [i for i in prompt.prompt_ids if i in CONTROL] == [bos, eos, bos, eos]
    assert [i for i in prompt.cue_ids if i in CONTROL] == [bos]
    if not prompt.truncated:
        assert TOKENIZER.decode(prompt.prompt_ids) == (
            f"<s>system\nYou read {kind} reviews {{with care}}.</s>\n"
            f"<s>user\nReview: a{sentence}</s>\n"
        )


def test_a_cue_of_ones_own_may_be_absent():
    found = conversation(TOKENIZER, chat_task(answer_cue=None))
    assert TOKENIZER.decode(found.cue_ids) == "<s>assistant\n"


def test_the_tokenizers_own_beginning_of_a_text_is_not_repeated():
    tokenizer = chatty("<s>" + TURNS.replace("<s>", "[") + BEGIN, bos=True)
    ids = conversation(tokenizer, chat_task()).encode(FIELDS).prompt_ids
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_a_model_that_thinks_first_is_told_not_to():
    cue_ids = conversation(chatty(TURNS + BEGIN + THINKING), chat_task()).cue_ids
    assert TOKENIZER.decode(cue_ids) == "<s>assistant\n<think>\n</think>\nSentiment:"


@pytest.mark.parametrize(
    ("template", "changes", "message"),
    [
        (None, {}, "tokenizer of tiny has no chat template; name an instruct model"),
        ("{{ raise_exception('no system turns') }}", {}, "template of tiny says: no system turns"),
        (TURNS, {"answer_cue": None}, r"task\.answer_cue: .* begins an answer with nothing"),
        ("{{ messages[1].content }}" + BEGIN, {}, "leaves out the field 'kind'"),
        ("{% if add_generation_prompt %}x{% endif %}" + TURNS, {}, "changes the messages"),
    ],
)
def test_a_chat_template_that_does_not_fit_is_refused(template, changes, message):
    with pytest.raises(ConfigError, match=message):
        conversation(chatty(template), chat_task(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"messages": []}, "a chat has both"),
        ({"template": "{kind} {sentence}"}, "a chat has both"),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "Hm."}]}, "must be the user's"),
        ({"messages": [{"role": "user", "content": "Hello"}]}, "needs named fields"),
        ({"messages": [{"role": "robot", "content": "{a}"}]}, "'system', 'user' or 'assistant'"),
        ({"columns": {"genre": "kind"}}, "columns names 'genre'"),
    ],
)
def test_a_task_that_is_no_conversation_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        chat_task(**changes)


def test_examples_have_the_fields_of_all_messages():
    record = {"kind": "film", "text": "so good", "label": "positive"}
    example = chat_task(columns={"sentence": "text"}).example(record, "here")
    assert example.input == FIELDS
