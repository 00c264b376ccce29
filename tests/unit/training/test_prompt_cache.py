import warnings
from collections.abc import Iterator

import pytest
import torch
from transformers import DynamicCache

from dalorra.adapter.layer import StochasticPeftModel, stochastic_layers
from dalorra.forward.reference import CACHE_ARGUMENT
from dalorra.prompts import Prompt, PromptTokenizer
from tests.tiny import FORMAT, random_prompts, tiny_adapter, tiny_base, tiny_prompts
from training import prompt_cache
from training.methods import Dalorra
from training.objective import Objective
from training.prompt_cache import PromptCache

BASE = tiny_base()
PROMPTS = tiny_prompts(BASE)  # ragged
TOKEN_BYTES = 2 * 2 * 2 * 8 * 4  # keys and values, layers, kv heads, head_dim, float32


@pytest.fixture(scope="module")
def model() -> StochasticPeftModel:
    return tiny_adapter(tiny_base())


def loss_and_gradients(model, prompts, cache) -> tuple[float, dict[str, torch.Tensor]]:
    label_ids = torch.tensor(PromptTokenizer(BASE.tokenizer, FORMAT).label_ids)
    config = Dalorra(samples=2)
    loss_of = Objective(config, label_ids, "answer_tokens", 10, cache)
    model.zero_grad()
    labels = torch.arange(len(prompts)) % 2
    loss = loss_of(model, prompts, labels, torch.Generator().manual_seed(3)).total
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients


def assert_same(found, expected) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def planned(model, max_bytes: int = 2**30, draws: int = 1_000) -> PromptCache:
    cache = PromptCache(max_bytes)
    cache.plan(model, PROMPTS, draws)
    return cache


@pytest.mark.parametrize("max_bytes", [0, 30 * TOKEN_BYTES, 2**30])
def test_loss_and_gradients_are_those_without_a_cache(model, max_bytes):
    expected = loss_and_gradients(model, PROMPTS, None)
    assert len(expected[1]) == 15
    cache = planned(model, max_bytes)
    assert_same(loss_and_gradients(model, PROMPTS, cache), expected)  # computed
    assert_same(loss_and_gradients(model, PROMPTS, cache), expected)  # remembered
    batch = [PROMPTS[1], PROMPTS[3], PROMPTS[1]]  # one twice
    assert_same(loss_and_gradients(model, batch, cache), loss_and_gradients(model, batch, None))


def test_what_is_kept_does_not_depend_on_the_adapter():
    model = tiny_adapter(tiny_base())
    cache = planned(model)
    before = loss_and_gradients(model, PROMPTS, cache)
    with torch.no_grad():
        for layer in stochastic_layers(model).values():
            layer.up.mul_(-1.5)
    after = loss_and_gradients(model, PROMPTS, cache)
    assert_same(after, loss_and_gradients(model, PROMPTS, None))
    assert after[0] != pytest.approx(before[0], rel=1e-3)


def test_keys_and_values_are_those_of_the_base_alone_padded_on_the_left(model):
    with torch.no_grad():
        past = PromptCache(2**30).past(model, PROMPTS)
        longest = max(len(prompt.prompt_ids) for prompt in PROMPTS)
        assert past.get_seq_length() == longest
        for b, prompt in enumerate(PROMPTS):
            ids = torch.tensor([prompt.prompt_ids])
            alone = DynamicCache()
            BASE.model(input_ids=ids, use_cache=True, **{CACHE_ARGUMENT: alone})
            for layer, expected in zip(past.layers, alone.layers, strict=True):
                real = slice(longest - len(prompt.prompt_ids), None)
                torch.testing.assert_close(layer.keys[b, :, real], expected.keys[0])
                torch.testing.assert_close(layer.values[b, :, real], expected.values[0])
                assert not layer.keys.requires_grad


@pytest.mark.parametrize("rows", [1, 7, 20, 40, 100])
def test_pieces_of_long_prompts_are_the_whole(model, rows, monkeypatch):
    prompts = random_prompts((45, 9, 10, 30), 3)
    whole = PromptCache(2**30).past(model, prompts)
    monkeypatch.setattr(prompt_cache, "ROWS", rows)
    computed, trunk = [], model.get_base_model().model
    hook = trunk.register_forward_pre_hook(lambda _, ids: computed.append(ids[0].numel()))
    for draws in (4, 100):  # none are kept; all of them
        cache = PromptCache(2**30)
        cache.plan(model, prompts, draws)
        computed.clear()
        in_pieces = cache.past(model, prompts)
        assert max(computed) <= rows
        for found, expected in zip(in_pieces.layers, whole.layers, strict=True):
            for b, prompt in enumerate(prompts):
                real = slice(45 - len(prompt.prompt_ids), None)
                for one, other in ((found.keys, expected.keys), (found.values, expected.values)):
                    torch.testing.assert_close(
                        one[b, :, real], other[b, :, real], rtol=1e-5, atol=1e-5
                    )
    hook.remove()


def test_no_deprecated_name_is_used_for_the_keys_and_values(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        loss_and_gradients(model, PROMPTS, planned(model))


def test_extending_what_was_returned_does_not_change_what_is_kept(model):
    cache = planned(model)
    past = cache.past(model, PROMPTS[:1])
    past.layers[0].keys.fill_(7.0)
    again = cache.past(model, PROMPTS[:1])
    assert not (again.layers[0].keys == 7.0).any()


def prompt_of(first: int, tokens: int = 10) -> Prompt:
    return Prompt(tuple(range(first, first + tokens)), PROMPTS[0].cue_ids)


@pytest.fixture
def computed(model) -> Iterator[list[list[int]]]:
    """First tokens of the prompts of every pass of the base, as they come."""
    passes: list[list[int]] = []
    trunk = model.get_base_model().model
    hook = trunk.register_forward_pre_hook(lambda _, ids: passes.append(ids[0][:, 0].tolist()))
    yield passes
    hook.remove()


def test_what_fits_is_computed_in_groups_of_like_length_and_kept(model, computed):
    prompts = [prompt_of(10 * n, tokens=4 + n % 2) for n in range(20)]  # even ones are shorter
    cache = PromptCache((8 * 4 + 2 * 4 + 6 * 5) * TOKEN_BYTES)  # two groups of eight
    cache.plan(model, prompts, draws=21)
    for _ in range(2):
        cache.past(model, prompts[:2])
        cache.past(model, [prompts[19], prompts[17], prompts[19]])
    shortest = [10 * n for n in range(0, 16, 2)]
    mixed = [160, 180, *(10 * n for n in range(1, 13, 2))]
    rest = [190, 170]  # beyond the bound: computed anew, those of a batch together
    assert computed == [shortest, mixed, rest, rest]
    assert cache.bytes == cache.max_bytes


def test_a_run_that_does_not_come_back_to_its_prompts_keeps_none(model, computed):
    cache = planned(model, draws=len(PROMPTS))
    cache.past(model, PROMPTS)
    once = len(computed)
    cache.past(model, PROMPTS)
    assert len(computed) == 2 * once
    assert cache.bytes == 0


def test_a_batch_beyond_the_bound_is_served_in_full(model):
    for bound in (0, 15 * TOKEN_BYTES):
        cache = PromptCache(bound)
        prompts = [prompt_of(10), prompt_of(30), prompt_of(50)]
        cache.plan(model, prompts, draws=100)
        assert cache.past(model, prompts).layers[0].keys.shape == (3, 2, 10, 8)
        assert cache.bytes == 0


@pytest.mark.parametrize("max_bytes", [0, 80 * TOKEN_BYTES, 2**30])
def test_a_mini_batch_is_the_same_whatever_came_before_it(model, max_bytes):
    """Bit for bit: a resumed run has not seen the batches that the unbroken one has."""
    unbroken, resumed = (planned(model, max_bytes) for _ in range(2))
    for batch in ([PROMPTS[0], PROMPTS[2]], PROMPTS, PROMPTS[::-1], [PROMPTS[3]]):
        unbroken.past(model, batch)
    for batch in ([PROMPTS[1], PROMPTS[3]], PROMPTS[::2]):
        pairs = zip(*(c.past(model, batch).layers for c in (unbroken, resumed)), strict=True)
        for one, other in pairs:
            assert torch.equal(one.keys, other.keys)
            assert torch.equal(one.values, other.values)


def test_another_run_on_the_same_training_set_computes_nothing_again(model, computed):
    alike = [prompt_of(10 * n) for n in range(4)]
    cache = PromptCache(2**30)
    cache.plan(model, alike, 1_000)
    cache.past(model, alike)
    kept = cache.bytes
    assert kept > 0
    cache.plan(model, alike, 1_000)
    assert cache.bytes == kept
    cache.past(model, alike)
    assert len(computed) == 1
    cache.plan(model, alike[:1], 1_000)  # other groups: their last digits would differ
    assert cache.bytes == 0


def test_prompts_of_other_lengths_are_not_padded_to_the_longest(model, computed):
    tokens = {10: 40, 30: 10, 50: 11, 70: 44, 90: 12}
    prompts = [prompt_of(first, tokens=n) for first, n in tokens.items()]
    past = PromptCache(0).past(model, prompts)
    assert computed == [[30, 50, 90], [10, 70]]
    assert past.layers[0].keys.shape == (5, 2, 44, 8)  # in the order of the batch
    alone = [PromptCache(0).past(model, [prompt]).layers[1].values for prompt in prompts]
    for one, found in zip(alone, past.layers[1].values, strict=True):
        torch.testing.assert_close(one[0], found[:, -one.shape[2] :], atol=1e-5, rtol=1e-5)
