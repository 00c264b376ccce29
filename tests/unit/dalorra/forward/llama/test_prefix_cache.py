"""Reusing the keys and values of a known prefix changes no answer."""

from collections.abc import Sequence

import pytest
import torch

from dalorra.blocks import BLOCK
from dalorra.forward.llama.prefix_cache import PrefixCache
from dalorra.prompts import Prompt
from tests.tiny import MODULES, packed, tiny_adapter, tiny_bank, tiny_base

LABELS = torch.tensor([1, 2, 7])
SAMPLES = 5
HEAD = tuple(range(10, 10 + 2 * BLOCK + 3))  # two complete blocks and a part of one


def prompt(tail: tuple[int, ...], head: tuple[int, ...] = HEAD) -> Prompt:
    return Prompt((*head, *tail), (1, 2, 3))


RAGGED = [
    [prompt((50, 51))],
    [prompt((60, 61, 62, 63, 64, 65, 66)), prompt((50, 51))],  # different known lengths
    [prompt((70,)), prompt((5,), head=(9,) * 4), prompt((), head=HEAD[: 2 * BLOCK])],
    [prompt((), head=HEAD[: 2 * BLOCK])],  # all of it known, but for the last token
]
OF_ONE_LENGTH = [
    [prompt((50, 51)), prompt((60, 61))],
    [prompt((70, 71)), prompt((80, 81)), prompt((90, 91))],
    [prompt((50, 51)), prompt((), head=(9,) * 5)],  # five rows are left of both
]


@pytest.mark.parametrize(
    ("batches", "found"),
    [(RAGGED, [0, 4, 7, 8]), (OF_ONE_LENGTH, [0, 6, 8])],
    ids=["joined", "of one length"],
)
@pytest.mark.parametrize(
    ("modules", "last_layers"), [(MODULES, None), (("q_proj", "lm_head"), 1), (("lm_head",), None)]
)
def test_answers_are_those_of_the_uncached_network(
    modules: Sequence[str],
    last_layers: int | None,
    batches: Sequence[Sequence[Prompt]],
    found: list[int],
) -> None:
    model = tiny_adapter(tiny_base(layers=3), modules=modules, last_layers=last_layers)
    bank, cache = tiny_bank(model, SAMPLES), PrefixCache(1 << 20)
    cached, plain = packed(model, LABELS, bank, prefix_cache=cache), packed(model, LABELS, bank)
    for batch, blocks in zip(batches, found, strict=True):
        expected = plain.label_logits(batch, range(SAMPLES))
        got = cached.label_logits(batch, range(SAMPLES))
        torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5)
        assert cache.tokens_found == blocks * BLOCK
    assert cache.tokens_looked_up == sum(len(p.prompt_ids) for batch in batches for p in batch)


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


def test_of_a_prompt_beyond_the_bound_the_start_is_kept() -> None:
    block_bytes = 3 * 2 * 2 * BLOCK * 8 * 4
    cache = PrefixCache(2 * block_bytes)
    long = tuple(range(5 * BLOCK))
    cache.add([long], [0], torch.zeros(3, 2, 1, 2, len(long), 8))
    assert cache.bytes == 2 * block_bytes
    for prompt in (long, (*long[: 2 * BLOCK], 9)):
        found = cache.find([prompt])
        assert found is not None
        assert found.lengths == [2 * BLOCK]
    other = (300,) * BLOCK
    cache.add([other], [0], torch.zeros(3, 2, 1, 2, BLOCK, 8))
    found = cache.find([long])
    assert found is not None
    assert found.lengths == [BLOCK], "its end was dropped, not its start"


def test_kept_blocks_do_not_keep_the_forward_alive() -> None:
    cache = PrefixCache(1 << 20)
    rows = torch.zeros(3, 2, 1, 2, len(HEAD), 8)
    cache.add([HEAD], [0], rows)
    found = cache.find([HEAD])
    assert found is not None
    assert found.keys_values.untyped_storage().data_ptr() != rows.untyped_storage().data_ptr()
    assert cache.bytes == 2 * 3 * 2 * 2 * BLOCK * 8 * 4
