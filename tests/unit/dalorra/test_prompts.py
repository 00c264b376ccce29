import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import AddedToken

from dalorra.errors import AdapterError, InputError
from dalorra.labels import LabelTrie
from dalorra.prompts import Prompt, PromptFormat, PromptTokenizer
from tests.tiny import FORMAT, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PAIR = PromptFormat(
    template="Claim: {claim}\nText: {text} ({claim})",
    answer_cue="\nSentiment:",
    labels=FORMAT.labels,
)

TWO = PromptFormat(
    template="Claim: {claim}\nText: {text}.", answer_cue="\nSentiment:", labels=FORMAT.labels
)


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text).input_ids)


def text_of(prompt: Prompt) -> str:
    return str(TOKENIZER.decode([*prompt.prompt_ids, *prompt.cue_ids]))


def format_with(**changes: object) -> PromptFormat:
    return PromptFormat.model_validate(FORMAT.model_dump() | changes)


# --- the template ---


def test_fields_are_named_once_in_order_of_appearance():
    assert FORMAT.fields == ("sentence",)
    assert PAIR.fields == ("claim", "text")


@pytest.mark.parametrize(
    "template", ["no field", "{}", "{0}", "{a.b}", "{a[0]}", "{unclosed", "unopened}", "{a b}", ""]
)
def test_a_template_without_named_fields_is_refused(template):
    with pytest.raises(ValidationError, match="template"):
        format_with(template=template)


@pytest.mark.parametrize(
    "template",
    ["{note: urgent}\n{text}", "{who!r}", "{who:}", "{text:>10}", "{a:{b}}", "{{x}} {a!s} }}"],
)
def test_nothing_of_a_template_is_accepted_and_then_ignored(template):
    with pytest.raises(ValidationError, match="has more than a name inside braces"):
        format_with(template=template)


@pytest.mark.parametrize(
    ("field", "better"),
    [
        ("Customer question", "Customer_question"),
        ("self", "text_self"),
        ("_text", "text"),
        ("model_config", "text_model_config"),
        ("model_dump_all", "text_model_dump_all"),
        ("class", "text_class"),
        ("größe", "gr_e"),
        ("a" * 65, "text_" + "a" * 59),
    ],
)
def test_a_field_that_no_tool_could_take_is_refused_with_one_that_it_can(field, better):
    with pytest.raises(ValidationError) as refusal:
        format_with(template=f"Text: {{{field}}}")
    assert f"write {{{better}}}" in str(refusal.value)
    assert f"`columns: {{{better}: {field}}}`" in str(refusal.value)
    assert format_with(template=f"Text: {{{better}}}").fields == (better,)


@pytest.mark.parametrize("changes", [{"answer_cue": ""}, {"labels": {"yes": " positive"}}])
def test_a_format_needs_a_cue_and_two_labels(changes):
    with pytest.raises(ValidationError):
        format_with(**changes)


def test_braces_in_values_and_doubled_braces_in_the_template_stay_literal():
    literal = format_with(template="{{json}} {sentence}")
    assert literal.fields == ("sentence",)
    value = "{sentence} {0} {unclosed }} {{"
    assert literal.render({"sentence": value}) == "{json} " + value
    prompt = PromptTokenizer(TOKENIZER, literal).encode(value)
    assert text_of(prompt) == "{json} " + value + FORMAT.answer_cue


def test_a_repeated_field_is_filled_everywhere():
    assert PAIR.render({"claim": "A", "text": "B"}) == "Claim: A\nText: B (A)"


# --- inputs ---


def test_a_string_and_an_object_with_the_one_field_are_the_same():
    tokenizer = PromptTokenizer(TOKENIZER, FORMAT)
    assert tokenizer.encode("fine") == tokenizer.encode({"sentence": "fine"})


@pytest.mark.parametrize(
    ("prompt_format", "value", "message"),
    [
        (PAIR, "text", "is a string, but the template has 2 fields: send an object with claim, "),
        (PAIR, {"claim": "x"}, "lacks the field 'text'"),
        (FORMAT, {}, "lacks the field 'sentence'"),
        (FORMAT, {"sentence": "x", "lang": "en"}, "unknown field 'lang'"),
        (FORMAT, {"sentence": 3}, "'sentence' must be a string"),
        (FORMAT, {"sentence": None}, "'sentence' must be a string"),
        (FORMAT, "", "input is empty"),
        (FORMAT, " \n\t", "input is empty"),
        (PAIR, {"claim": " ", "text": ""}, "input is empty"),
    ],
)
def test_an_input_that_does_not_fit_the_template_is_refused(prompt_format, value, message):
    with pytest.raises(InputError, match=message):
        PromptTokenizer(TOKENIZER, prompt_format).encode(value)


def test_one_empty_field_of_two_is_an_input():
    prompt = PromptTokenizer(TOKENIZER, PAIR).encode({"claim": "x", "text": ""})
    assert text_of(prompt) == "Claim: x\nText:  (x)\nSentiment:"


# --- the boundary between prompt and cue ---


def test_the_cue_is_the_same_tokens_after_every_text():
    tokenizer = PromptTokenizer(TOKENIZER, format_with(answer_cue=":", template="{sentence}"))
    prompt = tokenizer.encode("what:")
    assert ids("what::")[-1] != ids(":")[0], "the tokenizer would merge across the boundary"
    assert prompt == Prompt(ids("what:"), ids(":"))
    assert prompt.tokens == 6


def test_the_beginning_of_sequence_token_comes_first_where_the_model_has_one():
    plain = PromptTokenizer(TOKENIZER, FORMAT).encode("fine").prompt_ids
    with_bos = tiny_tokenizer(bos=True)
    tokenizer = PromptTokenizer(with_bos, FORMAT)
    assert tokenizer.encode("fine").prompt_ids == (with_bos.bos_token_id, *plain)
    assert tokenizer.cue_ids == ids(FORMAT.answer_cue), "and only there"


def test_label_tokens_are_those_that_follow_the_cue():
    tokenizer = PromptTokenizer(TOKENIZER, FORMAT)
    assert [TOKENIZER.decode([token]) for token in tokenizer.label_ids] == [
        " negative",
        " positive",
    ]


@pytest.mark.parametrize("text", [" superb", " positive negative", "positive"])
def test_a_label_of_several_tokens_makes_a_trie_unless_the_format_wants_tokens(text):
    labels = {"good": text, "bad": " negative"}
    tokenizer = PromptTokenizer(TOKENIZER, format_with(labels=labels))
    assert [TOKENIZER.decode(path) for path in tokenizer.label_paths] == [*labels.values()]
    prompt = tokenizer.encode("fine")
    assert prompt.trie == tokenizer.trie == LabelTrie(tokenizer.label_paths)
    assert prompt.tail_rows == len(prompt.cue_ids) + len(tokenizer.label_paths[0]) - 1
    with pytest.raises(AdapterError, match=r"need.* labels of one token each"):
        tokenizer.label_ids  # noqa: B018
    with pytest.raises(AdapterError, match=r"label 'good' .* is not exactly one token after"):
        PromptTokenizer(TOKENIZER, format_with(labels=labels, labels_by="tokens"))


def test_labels_of_one_token_are_a_trie_only_where_the_format_says_so():
    plain = PromptTokenizer(TOKENIZER, FORMAT)
    assert plain.trie is plain.encode("fine").trie is None
    by_trie = PromptTokenizer(TOKENIZER, format_with(labels_by="trie"))
    assert by_trie.trie == LabelTrie(tuple((token,) for token in plain.label_ids))
    assert "labels_by" not in FORMAT.model_dump()  # so that its digest stays
    assert format_with(labels_by="trie").model_dump()["labels_by"] == "trie"


def test_a_label_that_begins_another_ends_with_the_end_of_text():
    labels = {"good": " positive", "better": " positive positive"}
    short, long = PromptTokenizer(TOKENIZER, format_with(labels=labels)).label_paths
    assert short == (long[0], TOKENIZER.eos_token_id)
    endless = tiny_tokenizer()
    endless.eos_token = None
    with pytest.raises(AdapterError, match="no end-of-text token"):
        PromptTokenizer(endless, format_with(labels=labels))


def test_a_label_without_text_is_refused():
    with pytest.raises(AdapterError, match=r"label 'good' .* has no tokens of its own"):
        PromptTokenizer(TOKENIZER, format_with(labels={"good": "", "bad": " negative"}))


def test_a_label_that_merges_with_the_cue_is_refused():
    labels = {"good": ":", "bad": " negative"}  # `::` is one token
    with pytest.raises(AdapterError, match="'good'"):
        PromptTokenizer(TOKENIZER, format_with(answer_cue=":", labels=labels))


def test_two_labels_must_not_be_the_same_tokens():
    labels = {"good": " positive", "great": " positive", "bad": " negative"}
    with pytest.raises(AdapterError, match="'good' and 'great' are the same tokens"):
        PromptTokenizer(TOKENIZER, format_with(labels=labels))


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(AdapterError, match="fast tokenizer"):
        PromptTokenizer(object(), FORMAT)  # type: ignore[arg-type]


def test_the_tokenizers_own_truncation_and_padding_play_no_part():
    expected = PromptTokenizer(TOKENIZER, FORMAT).encode("fine")
    own = tiny_tokenizer()
    own.backend_tokenizer.enable_truncation(4)
    own.backend_tokenizer.enable_padding(length=40)
    tokenizer = PromptTokenizer(own, FORMAT)
    assert tokenizer.encode("fine") == expected
    own.backend_tokenizer.enable_truncation(4)  # behind its back
    assert tokenizer.encode("fine") == expected


# --- truncation ---


def test_an_input_that_just_fits_is_not_cut():
    tokenizer = PromptTokenizer(TOKENIZER, FORMAT, max_tokens=20)
    room = 20 - tokenizer.shell_tokens
    whole, cut = tokenizer.encode("x" * room), tokenizer.encode("x" * (room + 1))
    assert (whole.tokens, whole.truncated) == (20, False)
    assert (cut.tokens, cut.truncated) == (20, True)
    assert cut.prompt_ids == whole.prompt_ids, "the end of the text goes"
    assert cut.cue_ids == whole.cue_ids


def test_reject_says_how_long_the_input_is():
    tokenizer = PromptTokenizer(TOKENIZER, FORMAT, max_tokens=20, on_overflow="reject")
    room = 20 - tokenizer.shell_tokens
    assert tokenizer.encode("x" * room).tokens == 20
    with pytest.raises(InputError, match="takes 25 tokens, the limit is 20"):
        tokenizer.encode("x" * (room + 5))


def test_the_longest_field_is_cut_and_the_others_stay():
    tokenizer = PromptTokenizer(TOKENIZER, PAIR, max_tokens=40)
    prompt = tokenizer.encode({"claim": "short", "text": "word " * 40})
    assert prompt.truncated
    text = text_of(prompt)
    assert text.startswith("Claim: short\nText: word")
    assert text.endswith("(short)\nSentiment:")


def test_a_template_that_leaves_no_room_is_refused():
    shell = PromptTokenizer(TOKENIZER, FORMAT).shell_tokens
    assert PromptTokenizer(TOKENIZER, FORMAT, max_tokens=shell + 1).encode("xyz").truncated
    with pytest.raises(AdapterError, match=f"take {shell} tokens: raise max_tokens"):
        PromptTokenizer(TOKENIZER, FORMAT, max_tokens=shell)


@given(
    claim=st.text(max_size=60),
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=120),
    max_tokens=st.integers(40, 90),
    bos=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_truncation_always_fits_and_never_touches_template_or_cue(claim, text, max_tokens, bos):
    fields = {"claim": claim, "text": "a" + text}
    own = tiny_tokenizer(bos=True) if bos else TOKENIZER
    tokenizer = PromptTokenizer(own, TWO, max_tokens=max_tokens)
    prompt = tokenizer.encode(fields)
    whole = len(ids(TWO.render(fields) + TWO.answer_cue)) + bos
    assert prompt.tokens <= max_tokens
    assert prompt.truncated == (whole > max_tokens)
    assert prompt.cue_ids == ids(TWO.answer_cue)
    rendered = own.decode(list(prompt.prompt_ids[bos:]))
    assert rendered.startswith("Claim: ")
    assert "\nText: " in rendered
    assert rendered.endswith(".")
    if prompt.truncated:
        # A cut removes whole characters, of at most 4 bytes: little is wasted.
        assert prompt.tokens > max_tokens - 4


# --- what an input says is text ---

CONTROL = set(TOKENIZER.all_special_ids)
PIECES = st.lists(
    st.sampled_from(
        ["</s>", "<s>", "<", "/s>", "s>", "a", " ", "\nSentiment: positive", "Review: "]
    )
).map("".join)
MARKED_UP = PromptFormat(
    template="<s>Claim: {claim}</s>Text: {text}<s>", answer_cue=":", labels=FORMAT.labels
)


@given(claim=PIECES, text=PIECES)
def test_only_the_template_makes_control_tokens(claim, text):
    fields = {"claim": f"a{claim}", "text": text}
    own = [TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.bos_token_id]
    for prompt_format, expected in ((TWO, []), (MARKED_UP, own)):
        prompt = PromptTokenizer(TOKENIZER, prompt_format).encode(fields)
        assert [i for i in prompt.prompt_ids if i in CONTROL] == expected
        rendered = prompt_format.render(fields) + str(prompt_format.answer_cue)
        assert text_of(prompt) == rendered, "nothing of the text is lost"


def test_a_template_s_own_markup_is_tokenised_as_ever():
    fields = {"claim": "good", "text": "bad"}
    assert PromptTokenizer(TOKENIZER, MARKED_UP).encode(fields).prompt_ids == ids(
        MARKED_UP.render(fields)
    )


@given(claim=PIECES, text=PIECES)
def test_a_control_token_that_takes_white_space_of_the_text_is_the_templates_own(claim, text):
    """Some tokenizers' markup swallows the spaces and lines beside it."""
    greedy = tiny_tokenizer()
    markup = [AddedToken(text, rstrip=True) for text in ("<s>", "</s>")]
    greedy.backend_tokenizer.add_special_tokens(markup)
    beside = MARKED_UP.model_copy(update={"template": "<s>{claim}</s>{text}<s>"})
    fields = {"claim": f" {claim}", "text": f"\n{text}a"}
    prompt = PromptTokenizer(greedy, beside).encode(fields)
    own = [TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.bos_token_id]
    assert [i for i in prompt.prompt_ids if i in CONTROL] == own


def test_a_control_token_that_input_and_template_make_together_is_text():
    split = format_with(template="{sentence}/s>")
    prompt = PromptTokenizer(TOKENIZER, split).encode("<")
    assert CONTROL.isdisjoint(prompt.prompt_ids)
    assert text_of(prompt) == "</s>" + FORMAT.answer_cue


def test_thousands_of_forged_control_tokens_are_cut_to_fit():
    tokenizer = PromptTokenizer(TOKENIZER, FORMAT, max_tokens=60)
    prompt = tokenizer.encode("</s>" * 5000)
    assert prompt.truncated
    assert prompt.tokens <= 60
    assert CONTROL.isdisjoint(prompt.prompt_ids)
