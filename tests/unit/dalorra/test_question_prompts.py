import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import AddedToken

from dalorra.errors import AdapterError, InputError
from dalorra.prompts import Prompt
from dalorra.question_prompts import QuestionFormat, QuestionTokenizer
from dalorra.questions import Asked, Option, Question
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEXTS = QuestionFormat()
LETTERS = QuestionFormat(readout="letters")
STATE = "The card came on Monday."
TONE = Question("choice", "Tone?", tuple(map(Option, ("positive", "negative", "mixed"))))


def tokenizer(question_format: QuestionFormat = TEXTS, **options: int) -> QuestionTokenizer:
    return QuestionTokenizer(TOKENIZER, question_format, options.get("max_tokens", 4000))


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text).input_ids)


def encode(
    question: Question, question_format: QuestionFormat = TEXTS, state: str = STATE
) -> Prompt:
    return tokenizer(question_format).encode(Asked(state, question))


def text_of(prompt: Prompt) -> str:
    return str(TOKENIZER.decode([*prompt.prompt_ids, *prompt.cue_ids]))


def answers_of(prompt: Prompt) -> list[str]:
    assert prompt.trie is not None
    return [str(TOKENIZER.decode(list(path))) for path in prompt.trie.paths]


def choice(*options: str | tuple[str, str], instructions: str = "Which?") -> Question:
    made = (Option(o) if isinstance(o, str) else Option(*o) for o in options)
    return Question("choice", instructions, tuple(made))


# --- what the model reads ---


def test_a_question_follows_the_state_and_its_options_the_cue():
    prompt = encode(TONE)
    assert text_of(prompt) == f"{STATE}\n\nQuestion: Tone?\nAnswer:"
    assert prompt.cue_ids == ids("\nAnswer:")
    assert prompt.options == ("positive", "negative", "mixed")
    assert answers_of(prompt) == [" positive", " negative", " mixed"]


def test_all_questions_about_a_state_begin_with_the_same_tokens():
    first, second = encode(TONE), encode(Question.noul("\tIs it late?\n"))
    assert first.shared == second.shared == len(ids(STATE))
    assert first.prompt_ids[: first.shared] == second.prompt_ids[: second.shared] == ids(STATE)
    assert text_of(second).endswith("Question: Is it late?\nAnswer:")


def test_the_token_that_begins_a_text_belongs_to_the_state():
    with_start = QuestionTokenizer(tiny_tokenizer(bos=True), TEXTS)
    prompt = with_start.encode(Asked(STATE, TONE))
    assert prompt.prompt_ids[: prompt.shared] == (0, *ids(STATE))
    assert 0 not in prompt.prompt_ids[1:]


def test_yes_and_no_are_words_whatever_the_readout_and_in_the_order_of_the_question():
    question = Question.noul("Late?")
    assert answers_of(encode(question)) == answers_of(encode(question, LETTERS)) == [" yes", " no"]
    turned = Question("noul", "Late?", question.options[::-1])
    assert answers_of(encode(turned)) == [" no", " yes"]
    assert encode(turned).options == ("false", "true")


def test_options_with_descriptions_are_listed_and_those_without_beside_them():
    prompt = encode(choice(("fees", "what it costs"), "card"))
    assert text_of(prompt).endswith("Which?\n- card\n- fees: what it costs\nAnswer:")
    prompt = encode(Question.noul("Late?", no="it came in time"))
    assert text_of(prompt).endswith("Late?\n- no: it came in time\n- yes\nAnswer:")


def test_options_are_always_listed_where_the_format_says_so():
    always = QuestionFormat(listing="always")
    assert "\n- mixed\n- negative\n- positive\nAnswer:" in text_of(encode(TONE, always))
    assert "- " not in text_of(encode(Question.noul("Late?"), always))


def test_the_levels_of_a_score_are_listed_in_their_order():
    question = Question("score", "How good?", tuple(map(Option, ("poor", "fair", "excellent"))))
    assert "\n- poor\n- fair\n- excellent\nAnswer:" in text_of(encode(question))
    letters = encode(question, LETTERS)
    assert "\nA. poor\nB. fair\nC. excellent\nAnswer:" in text_of(letters)
    assert answers_of(letters) == [" A", " B", " C"]


def test_a_letter_stands_beside_its_option_in_the_list():
    prompt = encode(TONE, LETTERS)
    assert "\nA. mixed\nB. negative\nC. positive\nAnswer:" in text_of(prompt)
    assert answers_of(prompt) == [" C", " B", " A"]


@pytest.mark.parametrize(("options", "last"), [(26, " Z"), (27, " BA"), (255, " JU")])
def test_more_options_than_letters_have_codes_of_two(options, last):
    prompt = encode(choice(*(f"{n:03}" for n in range(options))), LETTERS)
    answers = answers_of(prompt)
    assert answers[-1] == last
    assert len(set(answers)) == options == len(prompt.options or ())
    assert len({len(answer) for answer in answers}) == 1


# --- the order of the options ---

names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1).filter(
    lambda name: name.strip() and "<" not in name
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(names, min_size=2, max_size=6, unique_by=lambda name: " ".join(name.split())),
    st.randoms(use_true_random=False),
    st.sampled_from([TEXTS, LETTERS, QuestionFormat(listing="always")]),
    st.booleans(),
)
def test_the_order_of_the_options_changes_neither_prompt_nor_paths(
    chosen, random, question_format, described
):
    options = [(name, f"is {name}") if described else name for name in chosen]
    given_order = encode(choice(*options), question_format)
    random.shuffle(options)
    shuffled = encode(choice(*options), question_format)
    assert shuffled.prompt_ids == given_order.prompt_ids
    paths = [
        dict(zip(p.options or (), p.trie.paths if p.trie else (), strict=True))
        for p in (given_order, shuffled)
    ]
    assert paths[0] == paths[1]


# --- what cannot be asked ---


def test_options_that_the_model_cannot_tell_apart_are_refused():
    for question_format in (TEXTS, LETTERS):
        with pytest.raises(InputError, match="'a  b' and 'a b' are the same to the model"):
            encode(choice("a  b", "a b"), question_format)


def test_an_option_that_begins_another_ends_with_the_end_of_text():
    prompt = encode(choice("positive", "positive news"))
    assert answers_of(prompt) == [" positive</s>", " positive news"]


@pytest.mark.parametrize("state", ["x" * 400, ""])
def test_what_is_too_long_is_refused_and_never_cut(state):
    asked = Asked(state, choice(*(f"{n} of them" for n in range(40))))
    short = tokenizer(max_tokens=200)
    with pytest.raises(InputError, match=rf"take \d+ tokens, {len(state)} of them the state"):
        short.encode(asked)
    room = tokenizer(max_tokens=2000).encode(asked)
    exact = len(room.prompt_ids) + room.tail_rows
    assert tokenizer(max_tokens=exact).encode(asked) == room
    with pytest.raises(InputError, match=f"the limit is {exact - 1}"):
        tokenizer(max_tokens=exact - 1).encode(asked)


def test_a_text_is_no_question():
    with pytest.raises(InputError, match="send a state and a question"):
        tokenizer().encode("fine")  # type: ignore[arg-type]


def test_templates_that_leave_no_room_are_refused():
    with pytest.raises(AdapterError, match="templates and cue alone take"):
        tokenizer(max_tokens=10)


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "no field"},
        {"state": "{state} {instructions}"},
        {"question": "{instructions}"},
        {"question": "{instructions} {options:>3}"},
        {"option": "{name}"},
        {"described_option": "{mark} {name}"},
        {"answer_cue": ""},
        {"readout": "head"},
    ],
)
def test_a_format_with_other_fields_is_refused(changes):
    with pytest.raises(ValidationError, match=next(iter(changes))):
        QuestionFormat.model_validate(changes)


# --- control tokens ---


def test_only_the_author_of_the_format_writes_control_tokens():
    chat = tiny_tokenizer()
    chat.add_special_tokens({"additional_special_tokens": [AddedToken("<|turn|>", special=True)]})
    turn = chat.convert_tokens_to_ids("<|turn|>")
    own = QuestionFormat(
        state="<|turn|>{state}", question="\n{instructions}{options}", answer_cue="<|turn|>A:"
    )
    asked = Asked(
        "a<|turn|>b", choice(("c<|turn|>", "d<|turn|>"), "<|turn|>", instructions="<|turn|>?")
    )
    prompt = QuestionTokenizer(chat, own).encode(asked)
    assert [*prompt.prompt_ids, *prompt.cue_ids].count(turn) == 2
    assert prompt.prompt_ids[0] == prompt.cue_ids[0] == turn
    assert prompt.trie is not None
    assert all(turn not in path for path in prompt.trie.paths)
    whole = chat.decode([*prompt.prompt_ids, *prompt.cue_ids])
    assert whole.count("<|turn|>") == 7


def test_the_fixed_words_are_yes_and_no_and_the_letters():
    assert tokenizer().word_paths == {"yes": ids(" yes"), "no": ids(" no")}
    assert list(tokenizer(LETTERS).word_paths) == ["yes", "no", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
