import pytest
import torch

from dalorra.prompts import Prompt, PromptEncoder
from dalorra.stochastic_lora import StochasticPeftModel, stochastic_layers
from tests.tiny import FORMAT, tiny_adapter, tiny_base, tiny_prompts
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
    label_ids = torch.tensor(PromptEncoder(BASE.tokenizer, FORMAT).label_ids)
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


@pytest.mark.parametrize("max_bytes", [0, 30 * TOKEN_BYTES, 2**30])
def test_loss_and_gradients_are_those_without_a_cache(model, max_bytes):
    expected = loss_and_gradients(model, PROMPTS, None)
    assert len(expected[1]) == 15
    cache = PromptCache(max_bytes)
    assert_same(loss_and_gradients(model, PROMPTS, cache), expected)  # computed
    assert_same(loss_and_gradients(model, PROMPTS, cache), expected)  # remembered


def test_another_batch_finds_what_it_shares_with_the_first(model):
    cache = PromptCache(2**30)
    loss_and_gradients(model, PROMPTS[:2], cache)
    batch = [PROMPTS[1], PROMPTS[3], PROMPTS[1]]  # remembered, new, and one twice
    assert_same(loss_and_gradients(model, batch, cache), loss_and_gradients(model, batch, None))


def test_what_is_kept_does_not_depend_on_the_adapter():
    model = tiny_adapter(tiny_base())
    cache = PromptCache(2**30)
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
            alone = BASE.model(input_ids=ids, use_cache=True).past_key_values
            for layer, expected in zip(past.layers, alone.layers, strict=True):
                real = slice(longest - len(prompt.prompt_ids), None)
                torch.testing.assert_close(layer.keys[b, :, real], expected.keys[0])
                torch.testing.assert_close(layer.values[b, :, real], expected.values[0])
                assert not layer.keys.requires_grad


def test_extending_what_was_returned_does_not_change_what_is_kept(model):
    cache = PromptCache(2**30)
    past = cache.past(model, PROMPTS[:1])
    past.layers[0].keys.fill_(7.0)
    again = cache.past(model, PROMPTS[:1])
    assert not (again.layers[0].keys == 7.0).any()


def prompt_of(first: int, tokens: int = 10) -> Prompt:
    return Prompt(tuple(range(first, first + tokens)), PROMPTS[0].cue_ids)


def computed(cache: PromptCache, model, monkeypatch) -> list[tuple[int, ...]]:
    """Prompts that had to be computed, as they come."""
    seen: list[tuple[int, ...]] = []
    compute = cache._compute

    def spy(model, prompt_ids):
        seen.append(prompt_ids)
        return compute(model, prompt_ids)

    monkeypatch.setattr(cache, "_compute", spy)
    return seen


def test_the_memory_bound_is_kept_and_the_least_recently_used_goes_first(model, monkeypatch):
    cache = PromptCache(25 * TOKEN_BYTES)  # two prompts of ten tokens
    seen = computed(cache, model, monkeypatch)
    a, b, c = (prompt_of(first) for first in (10, 30, 50))
    cache.past(model, [a])
    assert cache.bytes == 10 * TOKEN_BYTES
    cache.past(model, [b])
    cache.past(model, [a])  # now b is the oldest
    assert [ids[0] for ids in seen] == [10, 30]
    cache.past(model, [c])
    assert cache.bytes == 20 * TOKEN_BYTES
    cache.past(model, [a])
    assert [ids[0] for ids in seen] == [10, 30, 50], "a was kept"
    cache.past(model, [b])
    assert [ids[0] for ids in seen] == [10, 30, 50, 30], "b had gone"


def test_a_batch_beyond_the_bound_is_served_in_full(model):
    for bound in (0, 15 * TOKEN_BYTES):
        cache = PromptCache(bound)
        past = cache.past(model, [prompt_of(10), prompt_of(30), prompt_of(50)])
        assert past.layers[0].keys.shape == (3, 2, 10, 8)
        assert cache.bytes <= bound


def test_a_prompt_that_occurs_twice_in_a_batch_is_computed_and_counted_once(model, monkeypatch):
    cache = PromptCache(2**30)
    seen = computed(cache, model, monkeypatch)
    past = cache.past(model, [prompt_of(10)] * 3)
    assert past.layers[0].keys.shape[0] == 3
    assert len(seen) == 1
    assert cache.bytes == 10 * TOKEN_BYTES


def test_what_is_kept_does_not_depend_on_the_batch_it_was_computed_in(model):
    """Bit for bit: a resumed run computes prompts in other batches than the unbroken one."""
    together, apart = PromptCache(2**30), PromptCache(2**30)
    together.past(model, PROMPTS)
    for prompt in reversed(PROMPTS):
        apart.past(model, [prompt])
    for one, other in zip(
        *(cache.past(model, PROMPTS).layers for cache in (together, apart)), strict=True
    ):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)
