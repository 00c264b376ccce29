"""The packed forwards against plain PEFT LoRA, one sample and one sequence at a time.

`reference` is the forward through transformers, `served` the one that answers requests.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dalorra.adapter.layer import StochasticPeftModel, mask_logits, stochastic_layers
from dalorra.base.model import BaseModel
from dalorra.forward.reference import answer_logits
from dalorra.forward.reference_rows import pack
from dalorra.posteriors.bank import MaskBank
from dalorra.prompts import Prompt, PromptFormat, PromptTokenizer, Scope
from tests.reference import PlainLora
from tests.tiny import (
    EVERY_LINEAR,
    FORMAT,
    MODULES,
    SENTENCES,
    packed,
    tiny_adapter,
    tiny_bank,
    tiny_base,
    tiny_prompts,
)

SCOPES: tuple[Scope, ...] = ("answer_tokens", "all_tokens")


@dataclass(frozen=True)
class Case:
    """One adapter, its plain twin and a bank."""

    base: BaseModel
    model: StochasticPeftModel
    twin: PlainLora
    bank: MaskBank
    prompts: list[Prompt]
    label_ids: tuple[int, ...]
    scope: Scope

    def expected(self, prompts: list[Prompt] | None = None) -> Tensor:
        return self.twin.bank_logits(prompts or self.prompts, self.bank.masks, self.label_ids)


def reference(
    c: Case, prompts: Sequence[Prompt] | None = None, samples: range | None = None
) -> Tensor:
    with torch.no_grad():
        rows = pack(prompts or c.prompts, samples or range(c.bank.samples), c.scope)
        return answer_logits(c.model, rows, c.bank, torch.tensor(c.label_ids))


def served(
    c: Case, prompts: Sequence[Prompt] | None = None, samples: range | None = None
) -> Tensor:
    network = packed(c.model, torch.tensor(c.label_ids), c.bank, c.scope)
    return network.label_logits(prompts or c.prompts, samples or range(c.bank.samples)).clone()


Forward = Callable[..., Tensor]
FORWARDS = pytest.mark.parametrize("forward", [reference, served])


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
    prompts = tiny_prompts(base, SENTENCES, prompt)
    label_ids = PromptTokenizer(base.tokenizer, prompt).label_ids
    twin = PlainLora(plain, model, scope)
    return Case(base, model, twin, tiny_bank(model, samples), prompts, label_ids, scope)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


@FORWARDS
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_ragged_batch_equals_plain_lora_one_by_one(forward: Forward, scope, tied):
    c = case(scope, tied=tied)
    found = forward(c)
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
        {"modules": EVERY_LINEAR},
    ],
    ids=str,
)
def test_every_shape_of_adapter_equals_plain_lora(forward: Forward, scope, options):
    c = case(scope, **options)
    assert_same(forward(c), c.expected())


@FORWARDS
@pytest.mark.parametrize("scope", SCOPES)
def test_a_cue_as_long_as_the_prompt_equals_plain_lora(forward: Forward, scope):
    c = case(scope)
    cue = c.prompts[0].cue_ids
    for prompts in ([Prompt((), cue)], [Prompt((), cue), *c.prompts]):
        assert_same(forward(c, prompts), c.expected(prompts))


@FORWARDS
@pytest.mark.parametrize("scope", SCOPES)
def test_a_prompt_that_is_longer_than_a_block_of_attention_equals_plain_lora(forward, scope):
    c = case(scope, samples=2)
    prompts = tiny_prompts(c.base, ("long " * 29, "longer " * 18, "short"))
    assert max(prompt.tokens for prompt in prompts) > 2 * 64
    assert_same(forward(c, prompts), c.expected(prompts))


@FORWARDS
@pytest.mark.parametrize("scope", SCOPES)
def test_packed_equals_separate_forwards_of_one_prompt_and_one_sample(forward: Forward, scope):
    c = case(scope, samples=4)
    together = forward(c)
    for b, prompt in enumerate(c.prompts):
        for m in range(4):
            alone = forward(c, [prompt], range(m, m + 1))
            assert_same(alone, together[b : b + 1, m : m + 1])


@FORWARDS
def test_a_later_part_of_the_bank_uses_those_samples(forward: Forward):
    c = case("answer_tokens", samples=5)
    assert_same(forward(c, samples=range(2, 5)), forward(c)[:, 2:])


@FORWARDS
@pytest.mark.parametrize("scope", SCOPES)
def test_the_mean_mask_and_soft_masks_are_folded_the_same_way(forward: Forward, scope):
    c = case(scope)
    c = replace(c, bank=MaskBank.mean(mask_logits(c.model).detach()))
    assert_same(forward(c), c.expected())


@FORWARDS
def test_infinite_logits_are_plain_peft_lora(forward: Forward):
    c = case("all_tokens")
    with torch.no_grad():
        for layer in stochastic_layers(c.model).values():
            layer.mask_logits.fill_(math.inf)
    found = forward(replace(c, bank=tiny_bank(c.model, 2)))
    for b, prompt in enumerate(c.prompts):
        expected = c.twin.logits(prompt, mask=None)[list(c.label_ids)]
        assert_same(found[b], expected.expand(2, -1))


@FORWARDS
def test_the_scopes_differ(forward: Forward):
    c = case("answer_tokens")
    on_cue, everywhere = (forward(replace(c, scope=scope)) for scope in SCOPES)
    assert (on_cue - everywhere).abs().max() > 0.1


@FORWARDS
@pytest.mark.parametrize("scope", SCOPES)
def test_a_forward_leaves_no_trace(forward: Forward, scope):
    c = case(scope)
    before = copy.deepcopy(c.model.state_dict())
    ids = torch.tensor([c.prompts[1].prompt_ids])
    with torch.no_grad():
        plain = c.model(input_ids=ids).logits
    forward(c)
    assert all(layer.rank_noise is None for layer in stochastic_layers(c.model).values())
    after = c.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    with torch.no_grad():
        torch.testing.assert_close(c.model(input_ids=ids).logits, plain)


def test_samples_of_its_own_for_each_prompt():
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
