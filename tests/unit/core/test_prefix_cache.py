"""Reusing the keys and values of a known prefix changes no answer."""

import pytest
import torch

from dalorra.forward.llama.network import PackedLlama
from dalorra.forward.llama.prefix_cache import BLOCK, PrefixCache
from dalorra.prompts import Prompt
from tests.unit.core.test_packed_llama import JOINED, LABELS, SAMPLES, TOLERANCE, adapted

HEAD = tuple(range(10, 10 + 2 * BLOCK + 3))  # two complete blocks and a part of one


def prompt(tail: tuple[int, ...], head: tuple[int, ...] = HEAD) -> Prompt:
    return Prompt((*head, *tail), (1, 2, 3))


@pytest.mark.parametrize("joined", JOINED, ids=["padded", "joined"])
def test_answers_are_those_of_the_uncached_network(joined: bool) -> None:
    model, bank = adapted(["q_proj", "v_proj", "lm_head"])
    cache = PrefixCache(1 << 20)
    cached = PackedLlama.of(model, LABELS, cache, joins_prompts=joined)
    plain = PackedLlama.of(model, LABELS)
    batches = [
        [prompt((50, 51))],
        [prompt((60, 61, 62, 63, 64, 65, 66)), prompt((50, 51))],  # different known lengths
        [prompt((70,)), prompt((5,), head=(9,) * 4), prompt((), head=HEAD[: 2 * BLOCK])],
        [prompt((), head=HEAD[: 2 * BLOCK])],  # all of it known, but for the last token
    ]
    found = []
    for batch in batches:
        expected = plain.hidden_states(batch, range(SAMPLES), bank, "answer_tokens")
        got = cached.hidden_states(batch, range(SAMPLES), bank, "answer_tokens")
        torch.testing.assert_close(got.answers, expected.answers, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(got.prompt_end, expected.prompt_end, rtol=0, atol=TOLERANCE)
        found.append(cache.tokens_found)
    assert found == [0, 4 * BLOCK, 7 * BLOCK, 8 * BLOCK]
    assert cache.tokens_looked_up == sum(len(p.prompt_ids) for batch in batches for p in batch)


def test_works_when_only_the_last_layer_or_the_head_is_stochastic() -> None:
    for modules, layers in ((["q_proj", "lm_head"], range(2, 3)), (["lm_head"], None)):
        model, bank = adapted(modules, layers)
        cached, plain = (
            PackedLlama.of(model, LABELS, PrefixCache(1 << 20)),
            PackedLlama.of(model, LABELS),
        )
        for batch in ([prompt((50,))], [prompt((60, 61)), prompt((62,))]):
            expected = plain.label_logits(batch, range(SAMPLES), bank, "answer_tokens")
            got = cached.label_logits(batch, range(SAMPLES), bank, "answer_tokens")
            assert (expected - got).abs().max() < TOLERANCE


def test_a_block_is_known_by_everything_before_it() -> None:
    cache = PrefixCache(1 << 20)
    cache.add([HEAD], [0], torch.zeros(3, 2, 1, 2, len(HEAD), 8))
    same_second_block = (*range(100, 100 + BLOCK), *HEAD[BLOCK:])
    assert cache.find([same_second_block]) is None
    found = cache.find([HEAD[: 2 * BLOCK - 1]])
    assert found is not None
    assert found.lengths == [BLOCK]


def test_memory_is_bounded_and_the_oldest_block_goes_first() -> None:
    block_bytes = 3 * 2 * 2 * BLOCK * 8 * 4
    cache = PrefixCache(2 * block_bytes)
    first, second, third = ((token,) * BLOCK for token in (1, 2, 3))
    for tokens in (first, second):
        cache.add([tokens], [0], torch.zeros(3, 2, 1, 2, BLOCK, 8))
    assert cache.find([(*first, 9)]) is not None  # used last, so `second` is the oldest
    cache.add([third], [0], torch.zeros(3, 2, 1, 2, BLOCK, 8))
    assert cache.bytes == 2 * block_bytes
    assert cache.find([(*second, 9)]) is None
    assert cache.find([(*first, 9)]) is not None
    assert cache.find([first]) is None, "the last token is never looked up"


def test_kept_blocks_do_not_keep_the_forward_alive() -> None:
    cache = PrefixCache(1 << 20)
    rows = torch.zeros(3, 2, 1, 2, len(HEAD), 8)
    cache.add([HEAD], [0], rows)
    found = cache.find([HEAD])
    assert found is not None
    assert found.keys_values.untyped_storage().data_ptr() != rows.untyped_storage().data_ptr()
    assert cache.bytes == 2 * 3 * 2 * 2 * BLOCK * 8 * 4
