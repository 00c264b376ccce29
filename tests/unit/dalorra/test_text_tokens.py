"""Control tokens in what an input says, for the kinds of tokenizers that base models come with."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordPiece
from transformers import PreTrainedTokenizerFast

from dalorra.text_tokens import Part, TextTokens
from tests import tiny, tiny_encoder

LETTERS = [chr(code) for code in range(32, 127)] + ["\n"]
CHAT = ("<|im_start|>", "<|im_end|>", "[INST]")


def fast(tokenizer: Tokenizer, *control: str) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(list(control))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=control[0], eos_token=control[1]
    )


def byte_level() -> PreTrainedTokenizerFast:
    """As of Llama 3, Qwen and SmolLM2, with chat markup."""
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(CHAT)})
    return tokenizer


def byte_fallback() -> PreTrainedTokenizerFast:
    """As of Llama 2 and Mistral: spaces are ▁, and what has no token is its bytes."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", *bytes_, "▁", *(letter for letter in LETTERS if letter not in " \n")]
    model = BPE(
        {token: i for i, token in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return fast(tokenizer, "<s>", "</s>", *CHAT)


def unigram() -> PreTrainedTokenizerFast:
    """As of T5 and many multilingual encoders."""
    scored = [("<unk>", 0.0), *((letter, -3.0) for letter in ["▁", *LETTERS])]
    tokenizer = Tokenizer(Unigram(scored, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return fast(tokenizer, "<s>", "</s>", *CHAT)


def greedy() -> PreTrainedTokenizerFast:
    """Its markup swallows white space beside it, or stands as a word of its own alone."""
    model = WordPiece({"[UNK]": 0, **{t: i + 1 for i, t in enumerate(LETTERS)}}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    found = fast(tokenizer, "<s>", "</s>", *CHAT[1:])
    found.backend_tokenizer.add_special_tokens(
        [
            AddedToken("<s>", lstrip=True, rstrip=True),
            AddedToken("</s>", rstrip=True),
            AddedToken("<|im_start|>", single_word=True),
        ]
    )
    return found


def lower_case() -> PreTrainedTokenizerFast:
    """As of uncased BERT, which reads [sep] as its [SEP]."""
    tokenizer = tiny_encoder.tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_tokens([AddedToken("[MARK]", normalized=True, special=True)], special_tokens=True)
    return tokenizer


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    kind.__name__: kind for kind in (byte_level, byte_fallback, unigram, greedy, lower_case)
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return KINDS[request.param]()


MARKUP = ["</s>", "<s>", *CHAT, "[SEP]", "[CLS]", "[sep]", "[MARK]", "[mark]"]
HALVES = [half for text in MARKUP for half in (text[:2], text[2:], text[:-1], text[-1:])]
SAID = st.lists(st.sampled_from([*MARKUP, *HALVES, "a", "film", " ", "\n", "."])).map("".join)


@given(data=st.data())
def test_what_an_input_says_controls_nothing(tokenizer: PreTrainedTokenizerFast, data):
    text = data.draw(SAID)
    tokens = TextTokens(tokenizer)
    control = controls(tokenizer)
    assert control.isdisjoint(tokens.of([Part(text)]))
    own = Part(tokenizer.eos_token or tokenizer.sep_token, own=True)
    between = tokens.of([own, Part(f"a{text}a"), own])
    assert [id_ for id_ in between if id_ in control] == list(tokens(own.text)) * 2


def test_the_attack_would_work_without_it(tokenizer: PreTrainedTokenizerFast):
    """Each of these tokenizers makes control tokens of text, given the chance."""
    text = f"good {tokenizer.eos_token or tokenizer.sep_token} bad"
    plain = tokenizer(text, add_special_tokens=False).input_ids
    assert not controls(tokenizer).isdisjoint(plain)


def controls(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Ids of control tokens; that of unknown words stands for any text."""
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return set(added) - {tokenizer.unk_token_id}
