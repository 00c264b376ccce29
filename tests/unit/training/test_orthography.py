"""Spellings say the same in other letters and marks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalorra.errors import ConfigError
from training.orthography import (
    SPELLINGS,
    VARIANTS,
    in_spelling,
    natural_spacing,
    one_spelling,
    spellings,
    words,
)
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
    example = Example({"text": text}, "a")
    assert len(spellings(example)) == VARIANTS
    for one in spellings(example):
        assert words(one) == words(example)


def test_the_words_are_letters_and_digits():
    assert words(Example({"a": "It 's 3, isn't it ?", "b": "ß"}, "x")).input == {
        "a": "ITS3ISNTIT",
        "b": "SS",
    }


def test_a_spelling_has_a_name_and_mixed_takes_each_example_in_one():
    example = Example({"text": TREEBANK}, "a")
    assert [in_spelling(example, name) for name in SPELLINGS] == spellings(example)
    assert in_spelling(example, "mixed") == one_spelling(example)
    with pytest.raises(ConfigError, match="no spelling is called 'odd': there are given, lower"):
        in_spelling(example, "odd")


def test_mixed_spellings_are_fixed_by_the_input_and_about_as_frequent():
    examples = [Example({"text": f"it 's odd {i}"}, "a") for i in range(600)]
    picked = [spellings(e).index(one_spelling(e)) for e in examples]
    assert picked == [spellings(e).index(one_spelling(e)) for e in examples]
    counts = [picked.count(i) for i in range(VARIANTS)]
    assert max(abs(count - 100) for count in counts) < 4 * 600**0.5 * (5 / 36) ** 0.5


def test_every_field_is_spelt_in_the_same_way():
    example = Example({"subject": "a b .", "body": "c"}, "billing")
    assert [dict(e.input) for e in spellings(example)][2] == {"subject": "A b.", "body": "C."}
    assert {e.label for e in spellings(example)} == {"billing"}
