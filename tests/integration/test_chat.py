"""The default base model's own chat template."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chat import by_the_tokenizer, chat_task, conversation

pytestmark = pytest.mark.integration

CONTROLS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>"]
TEXTS = st.lists(
    st.one_of(
        st.sampled_from([*CONTROLS, "<|im", "_end|>", "assistant\n", " ", "\n", "{kind}"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    ),
    max_size=8,
).map("".join)


def test_the_default_base_model_is_asked_in_its_own_markup(base_model):
    tokenizer = base_model.tokenizer
    prompt = conversation(tokenizer, chat_task()).encode({"kind": "film", "sentence": "so good"})
    assert tokenizer.decode(prompt.prompt_ids) == (
        "<|im_start|>system\nYou read film reviews {with care}.<|im_end|>\n"
        "<|im_start|>user\nReview: so good<|im_end|>\n"
    )
    assert tokenizer.decode(prompt.cue_ids) == "<|im_start|>assistant\nSentiment:"


@pytest.mark.parametrize("cue", ["Sentiment:", None])
def test_without_a_system_message_the_template_has_its_own(base_model, cue):
    task = chat_task(messages=[{"role": "user", "content": "Review: {sentence}"}], answer_cue=cue)
    prompt = conversation(base_model.tokenizer, task).encode("so good")
    expected = by_the_tokenizer(base_model.tokenizer, task, {"sentence": "so good"})
    assert [*prompt.prompt_ids, *prompt.cue_ids] == expected
    assert base_model.tokenizer.decode(expected).startswith("<|im_start|>system\nYou are a helpful")


@given(kind=TEXTS, sentence=TEXTS)
@settings(max_examples=200, deadline=None)
def test_an_input_is_text_and_else_the_tokens_are_the_tokenizers_own(base_model, kind, sentence):
    tokenizer, fields = base_model.tokenizer, {"kind": kind, "sentence": f"a{sentence}"}
    prompt = conversation(tokenizer, chat_task(), 2_000).encode(fields)
    control = {tokenizer.convert_tokens_to_ids(text) for text in CONTROLS}
    start, end = (tokenizer.convert_tokens_to_ids(text) for text in CONTROLS[:2])
    assert [i for i in prompt.prompt_ids if i in control] == [start, end, start, end]
    forged = any(text in value for value in fields.values() for text in CONTROLS)
    if not forged:
        expected = by_the_tokenizer(tokenizer, chat_task(), fields)
        assert [*prompt.prompt_ids, *prompt.cue_ids] == expected
