"""The packed forwards against plain PEFT LoRA, one sample and one sequence at a time.

`packed` is the reference forward through transformers, `arranged` the one that answers requests.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from dalorra.adapter.layer import StochasticPeftModel, mask_logits, stochastic_layers
from dalorra.base.model import BaseModel
from dalorra.forward.llama.network import PackedLlama
from dalorra.forward.reference import answer_logits
from dalorra.forward.reference_rows import pack
from dalorra.posteriors.bank import BankSpec, MaskBank
from dalorra.prompts import Prompt, PromptFormat, PromptTokenizer, Scope
from tests.reference import PlainLora
from tests.tiny import FORMAT, MODULES, SENTENCES, tiny_adapter, tiny_base, tiny_prompts

SCOPES: tuple[Scope, ...] = ("answer_tokens", "all_tokens")
EVERY_PROJECTION = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Forward = Callable[..., Tensor]


def packed(
    model: StochasticPeftModel,
    prompts: list[Prompt],
    members: range,
    bank: MaskBank,
    label_ids: tuple[int, ...],
    scope: Scope,
) -> Tensor:
    with torch.no_grad():
        rows = pack(prompts, members, scope)
        return answer_logits(model, rows, bank, torch.tensor(label_ids))


def arranged(
    model: StochasticPeftModel,
    prompts: list[Prompt],
    members: range,
    bank: MaskBank,
    label_ids: tuple[int, ...],
    scope: Scope,
) -> Tensor:
    network = PackedLlama.of(model, torch.tensor(label_ids))
    return network.label_logits(prompts, members, bank, scope).clone()


FORWARDS = pytest.mark.parametrize("forward", [packed, arranged])


@dataclass
class Case:
    """One adapter, its plain twin and a bank."""

    base: BaseModel
    model: StochasticPeftModel
    twin: PlainLora
    bank: MaskBank
    prompts: list[Prompt]
    label_ids: tuple[int, ...]

    def expected(self, prompts: list[Prompt] | None = None) -> Tensor:
        return self.twin.bank_logits(prompts or self.prompts, self.bank.masks, self.label_ids)


def case(
    scope: Scope,
    *,
    samples: int = 3,
    prompt: PromptFormat = FORMAT,
    modules: tuple[str, ...] = MODULES,
    last_layers: int | None = None,
    **options: Any,
) -> Case:
    base = tiny_base(**options)
    plain = copy.deepcopy(base.model)
    model = tiny_adapter(base, modules=modules, last_layers=last_layers)
    bank = MaskBank.draw(mask_logits(model), BankSpec(samples=samples))
    prompts = tiny_prompts(base, SENTENCES, prompt)
    label_ids = PromptTokenizer(base.tokenizer, prompt).label_ids
    return Case(base, model, PlainLora(plain, model, scope), bank, prompts, label_ids)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


@FORWARDS
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_ragged_batch_equals_plain_lora_one_by_one(forward: Forward, scope, tied):
    c = case(scope, tied=tied)
    found = forward(c.model, c.prompts, range(3), c.bank, c.label_ids, scope)
    assert found.shape == (4, 3, 2)
    assert_same(found, c.expected())
    # The comparison means something: samples and prompts differ far beyond the tolerance.
    assert found.std(dim=1).min() > 0.05
    assert found.std(dim=0).min() > 0.05


@FORWARDS
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    "options",
    [
        {"samples": 1},
        {"samples": 10},
        {"prompt": FORMAT.model_copy(update={"answer_cue": ":"})},  # k = 1
        {"layers": 1},
        {"layers": 3, "last_layers": 1},
        {"layers": 3, "last_layers": 2},
        {"modules": ("lm_head",)},
        {"modules": ("q_proj", "v_proj")},  # the head is the base's own
        {"modules": ("q_proj", "v_proj"), "tied": True},
        {"modules": ("k_proj",), "layers": 3, "last_layers": 1},
        {"modules": ("o_proj",)},
        {"modules": ("gate_proj", "lm_head")},
        {"modules": ("down_proj",), "layers": 3, "last_layers": 2},
        {"modules": EVERY_PROJECTION},
    ],
    ids=str,
)
def test_every_shape_of_adapter_equals_plain_lora(forward: Forward, scope, options):
    c = case(scope, **options)
    samples = c.bank.samples
    found = forward(c.model, c.prompts, range(samples), c.bank, c.label_ids, scope)
    assert_same(found, c.expected())


@FORWARDS
@pytest.mark.parametrize("scope", SCOPES)
def test_a_cue_as_long_as_the_prompt_equals_plain_lora(forward: Forward, scope):
    c = case(scope)
    cue = c.prompts[0].cue_ids
    for prompts in ([Prompt((), cue)], [Prompt((), cue), *c.prompts]):
        found = forward(c.model, prompts, range(3), c.bank, c.label_ids, scope)
        assert_same(found, c.expected(prompts))


@FORWARDS
@pytest.mark.parametrize("scope", SCOPES)
def test_a_prompt_that_is_longer_than_a_block_of_attention_equals_plain_lora(forward, scope):
    c = case(scope, samples=2)
    prompts = tiny_prompts(c.base, ("long " * 29, "longer " * 18, "short"))
    assert max(prompt.tokens for prompt in prompts) > 2 * 64
    found = forward(c.model, prompts, range(2), c.bank, c.label_ids, scope)
    assert_same(found, c.expected(prompts))


@FORWARDS
@pytest.mark.parametrize("scope", SCOPES)
def test_packed_equals_separate_forwards_of_one_prompt_and_one_member(forward: Forward, scope):
    c = case(scope, samples=4)
    together = forward(c.model, c.prompts, range(4), c.bank, c.label_ids, scope)
    for b, prompt in enumerate(c.prompts):
        for m in range(4):
            alone = forward(c.model, [prompt], range(m, m + 1), c.bank, c.label_ids, scope)
            assert_same(alone, together[b : b + 1, m : m + 1])


@FORWARDS
def test_a_later_part_of_the_bank_uses_those_members(forward: Forward):
    c = case("answer_tokens", samples=5)
    whole = forward(c.model, c.prompts, range(5), c.bank, c.label_ids, "answer_tokens")
    part = forward(c.model, c.prompts, range(2, 5), c.bank, c.label_ids, "answer_tokens")
    assert_same(part, whole[:, 2:])


@FORWARDS
@pytest.mark.parametrize("scope", SCOPES)
def test_the_mean_mask_and_soft_masks_are_folded_the_same_way(forward: Forward, scope):
    c = case(scope)
    c.bank = MaskBank.mean(mask_logits(c.model))
    found = forward(c.model, c.prompts, range(1), c.bank, c.label_ids, scope)
    assert_same(found, c.expected())


@FORWARDS
def test_infinite_logits_are_plain_peft_lora(forward: Forward):
    c = case("all_tokens")
    with torch.no_grad():
        for layer in stochastic_layers(c.model).values():
            layer.mask_logits.fill_(math.inf)
    bank = MaskBank.draw(mask_logits(c.model), BankSpec(samples=2))
    found = forward(c.model, c.prompts, range(2), bank, c.label_ids, "all_tokens")
    for b, prompt in enumerate(c.prompts):
        expected = c.twin.logits(prompt, mask=None)[list(c.label_ids)]
        assert_same(found[b], expected.expand(2, -1))


@FORWARDS
def test_the_scopes_differ(forward: Forward):
    c = case("answer_tokens")
    on_cue, everywhere = (
        forward(c.model, c.prompts, range(3), c.bank, c.label_ids, scope) for scope in SCOPES
    )
    assert (on_cue - everywhere).abs().max() > 0.1


@FORWARDS
@pytest.mark.parametrize("scope", SCOPES)
def test_a_forward_leaves_no_trace(forward: Forward, scope):
    c = case(scope)
    before = copy.deepcopy(c.model.state_dict())
    ids = torch.tensor([c.prompts[1].prompt_ids])
    with torch.no_grad():
        plain = c.model(input_ids=ids).logits
    forward(c.model, c.prompts, range(3), c.bank, c.label_ids, scope)
    assert all(layer.rank_noise is None for layer in stochastic_layers(c.model).values())
    after = c.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    with torch.no_grad():
        torch.testing.assert_close(c.model(input_ids=ids).logits, plain)


def test_members_of_its_own_for_each_prompt():
    c = case("answer_tokens", samples=8)
    table = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])
    for scope in SCOPES:
        c.twin.scope = scope
        with torch.no_grad():
            rows = pack(c.prompts, table, scope)
            found = answer_logits(c.model, rows, c.bank, torch.tensor(c.label_ids))
        expected = c.expected()
        for b in range(4):
            assert_same(found[b], expected[b, table[b]])


def test_a_failing_forward_leaves_no_noise_behind():
    c = case("answer_tokens")
    rows = pack([Prompt((10_000,), c.prompts[0].cue_ids)], range(3), "answer_tokens")
    with pytest.raises(IndexError):
        answer_logits(c.model, rows, c.bank, torch.tensor(c.label_ids))
    assert all(layer.rank_noise is None for layer in stochastic_layers(c.model).values())


@pytest.mark.parametrize("scope", SCOPES)
def test_gradients_reach_every_tensor_of_the_adapter_and_none_of_the_base(scope):
    c = case(scope)
    masks = torch.sigmoid(mask_logits(c.model))[None].expand(3, -1, -1)
    rows = pack(c.prompts, range(3), scope)
    answer_logits(c.model, rows, MaskBank(masks), torch.tensor(c.label_ids)).sum().backward()
    for name, parameter in c.model.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name
        assert parameter.grad is None or parameter.grad.abs().max() > 0, name
