"""Spellings say the same in other letters and marks."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.orthography import VARIANTS, natural_spacing, spellings
from training.tasks import Example

TREEBANK = "jonathan parker 's film wo n't , i think , `` sit still '' ( or so ) ."


def spelt(text: str) -> list[str]:
    return [e.input["text"] for e in spellings(Example({"text": text}, "a"))]


def test_a_tokenised_sentence_in_every_spelling():
    natural = "jonathan parker's film won't, {} think, \"sit still\" (or so)"
    sentence = "J" + natural[1:].format("I")
    assert spelt(TREEBANK) == [
        TREEBANK,
        natural.format("i"),
        sentence + ".",
        sentence + "!",
        sentence,
        "Jonathan Parker's Film Won't, I Think, \"Sit Still\" (Or So)",
    ]


@pytest.mark.parametrize(
    ("text", "natural"),
    [
        ("bad , bad ... bad", "bad, bad... bad"),
        ("'70s rock 'n' roll", "'70s rock 'n' roll"),
        ("already natural, isn't it? (Yes.)", "already natural, isn't it? (Yes.)"),
        ("two  lines\n of text", "two  lines\n of text"),
    ],
)
def test_only_what_a_tokenizer_adds_is_taken_out(text, natural):
    assert natural_spacing(text) == natural


@pytest.mark.parametrize("text", ["Who made this ?", "這部電影非常好看。", "!!!", "", " "])
def test_a_question_stays_one_and_nothing_is_never_closed(text):
    for one in spelt(text):
        assert one.endswith(text.strip()[-1:])
        assert len(one) <= len(text)


@given(st.text(alphabet="abcXYZ ,.!?'n\"()éß", max_size=40))
def test_the_words_stay(text):
    def words(one: str) -> str:
        return re.sub(r"[^\w]", "", one.upper())

    assert len(spelt(text)) == VARIANTS
    assert {words(one) for one in spelt(text)} == {words(text)}


def test_every_field_is_spelt_in_the_same_way():
    example = Example({"subject": "a b .", "body": "c"}, "billing")
    assert [dict(e.input) for e in spellings(example)][2] == {"subject": "A b.", "body": "C."}
    assert {e.label for e in spellings(example)} == {"billing"}
