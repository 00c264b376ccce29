"""Prompts that bring labels of their own, together in one forward: as each alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dalorra.adapter.layer import stochastic_layers
from dalorra.forward.reference import answer_logits, reference_logits
from dalorra.forward.reference_rows import pack
from dalorra.labels import LabelTrie, end_apart
from dalorra.prompts import Prompt
from tests.tiny import tiny_adapter, tiny_bank, tiny_base
from training.prompt_cache import PromptCache

SAMPLES = range(3)
END = 319  # a token that begins nothing
BASE = tiny_base()
MODEL = tiny_adapter(BASE)
BANK = tiny_bank(MODEL)

tokens = st.integers(2, 300)
paths = st.lists(
    st.lists(tokens, min_size=1, max_size=4).map(tuple), min_size=2, max_size=5, unique=True
)
prompts = st.lists(
    st.tuples(st.lists(tokens, min_size=1, max_size=9), paths), min_size=2, max_size=4
)


def prompt(ids: list[int], labels: list[tuple[int, ...]]) -> Prompt:
    apart = end_apart(labels, END)
    assert apart is not None
    return Prompt(tuple(ids), (7, 8), trie=LabelTrie(apart), options=("",) * len(labels))


def alone(one: Prompt, scope: str) -> torch.Tensor:
    assert one.trie is not None
    return reference_logits(MODEL, [one], SAMPLES, BANK, scope, one.trie)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
@settings(deadline=None, max_examples=25)
@given(drawn=prompts)
def test_each_answers_as_it_does_alone(scope, drawn):
    batch = [prompt(*one) for one in drawn]
    tries = [one.trie for one in batch if one.trie]
    with torch.no_grad():
        together = reference_logits(MODEL, batch, SAMPLES, BANK, scope, tries)
        for one, found in zip(batch, together, strict=True):
            options = len(one.options or ())
            assert torch.isneginf(found[:, options:]).all()
            # Up to a constant where every label is one token: it is no part of any probability.
            expected = alone(one, scope).softmax(-1)
            torch.testing.assert_close(found[:, :options].softmax(-1), expected, atol=1e-5, rtol=0)


def test_rows_behind_a_shorter_trie_are_nobodys():
    batch = [prompt([3, 4, 5], [(9,), (10,)]), prompt([6], [(9, 11, 12), (13, 14)])]
    for scope in ("answer_tokens", "all_tokens"):
        rows = pack(batch, SAMPLES, scope)  # type: ignore[arg-type]
        adapted = rows.adapted.sum(dim=1).tolist()
        cue_and_trie = [2 + 0, 2 + 3]
        if scope == "answer_tokens":
            assert adapted == [len(SAMPLES) * rows_ for rows_ in cue_and_trie]
        else:
            prompts_ = [3, 1]
            each = [a + b for a, b in zip(prompts_, cue_and_trie, strict=True)]
            assert adapted == [n for n in each for _ in SAMPLES]


@pytest.mark.parametrize("cached", [False, True])
def test_gradients_reach_the_adapter_and_are_those_of_each_alone(cached):
    batch = [prompt([3, 4, 5], [(9,), (10,)]), prompt([6], [(9, 11, 12), (13, 14), (9, 15)])]
    tries = [one.trie for one in batch if one.trie]
    layers = stochastic_layers(MODEL)
    tensors = [layers[name].up for name in ("model.layers.0.self_attn.q_proj", "lm_head")]
    for tensor in tensors:
        tensor.requires_grad_()
    past = PromptCache(0).past(MODEL, batch) if cached else None
    rows = pack(batch, SAMPLES, "answer_tokens")
    together = answer_logits(MODEL, rows, BANK, tries, past)
    loss = sum(-one[:, 0].mean() for one in together.log_softmax(-1))
    found = torch.autograd.grad(loss, tensors)  # type: ignore[arg-type]
    separate = sum(-alone(one, "answer_tokens").log_softmax(-1)[:, 0].mean() for one in batch)
    expected = torch.autograd.grad(separate, tensors)  # type: ignore[arg-type]
    for tensor in tensors:
        tensor.requires_grad_(False)
    for one, other in zip(found, expected, strict=True):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
