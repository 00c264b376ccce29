"""Every family's packed forward against its unmodified transformers model, one sample at a time."""

import copy

import pytest
import torch
from torch import Tensor

from dalorra.adapter.layer import StochasticPeftModel
from dalorra.forward.llama.prefix_cache import PrefixCache
from dalorra.forward.reference import answer_logits
from dalorra.forward.reference_rows import pack
from dalorra.posteriors.bank import MaskBank
from dalorra.prompts import Prompt, Scope
from tests.reference import PlainLora
from tests.tiny import EVERY_LINEAR, MODULES, packed, random_prompts, tiny_adapter, tiny_bank
from tests.tiny_families import FAMILIES, WINDOW, base_of

LABELS = torch.tensor([1, 2, 7])
SAMPLES = 3
SCOPES: list[Scope] = ["answer_tokens", "all_tokens"]

every_family = pytest.mark.parametrize("family", FAMILIES)
every_scope = pytest.mark.parametrize("scope", SCOPES)
every_head = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def adapted(family: str, **options) -> tuple[StochasticPeftModel, PlainLora, MaskBank]:
    """An adapter, the same as plain PEFT on a model of its own, and a bank."""
    base = base_of(family, **options.pop("base", {}))
    untouched = copy.deepcopy(base.model)
    model = tiny_adapter(base, **options)
    return model, PlainLora(untouched, model, "answer_tokens"), tiny_bank(model, SAMPLES)


def alone(plain: PlainLora, prompts: list[Prompt], bank: MaskBank, scope: Scope) -> Tensor:
    plain.scope = scope
    return plain.bank_logits(prompts, bank.masks, tuple(LABELS.tolist()))


@every_family
@every_scope
@every_head
@pytest.mark.parametrize("modules", [MODULES, EVERY_LINEAR], ids=["usual modules", "all linear"])
def test_equals_the_unmodified_model(family, scope, tied, modules):
    model, plain, bank = adapted(family, base={"tied": tied}, modules=modules)
    network = packed(model, LABELS, bank, scope)
    for lengths in ((5, 40, 0), (9, 9)):  # joined, and of one length
        prompts = random_prompts(lengths, 2)
        wanted = alone(plain, prompts, bank, scope)
        with torch.no_grad():
            reference = answer_logits(model, pack(prompts, range(SAMPLES), scope), bank, LABELS)
        torch.testing.assert_close(reference, wanted, rtol=5e-5, atol=5e-5)
        found = network.label_logits(prompts, range(SAMPLES))
        torch.testing.assert_close(found, wanted, rtol=5e-5, atol=5e-5)
        assert wanted.std(dim=1).max() > 1e-2, "the samples do differ"


@every_family
@every_scope
@every_head
def test_bfloat16_errs_by_its_roundings_like_the_unmodified_model(family, scope, tied):
    model, plain, bank = adapted(family, base={"tied": tied})
    model.get_base_model().bfloat16()  # A and B stay as they are
    plain.model.bfloat16()
    prompts = random_prompts((5, 40, 17, 23), 2)
    own = alone(plain, prompts, bank, scope).float()
    plain.model.float()  # with the rounded weights
    exact = alone(plain, prompts, bank, scope)
    network = packed(model, LABELS, bank, scope)
    found = network.label_logits(prompts, range(SAMPLES))
    error, usual = (found - exact).square().mean().sqrt(), (own - exact).square().mean().sqrt()
    assert error < 2 * usual, "which have other roundings"
    assert error < 0.06 * exact.std()


@every_family
def test_known_prefixes_change_no_answer(family):
    model, _, bank = adapted(family)
    head = random_prompts((24,), 2)[0].prompt_ids
    batch = [Prompt((*head, *tail), (1, 2)) for tail in ((50, 51, 52), (60,))]
    cache = PrefixCache(1 << 20)
    cached, plain = packed(model, LABELS, bank, prefix_cache=cache), packed(model, LABELS, bank)
    expected = plain.label_logits(batch, range(SAMPLES))
    for _ in range(2):
        found = cached.label_logits(batch, range(SAMPLES))
        torch.testing.assert_close(found, expected, rtol=5e-5, atol=5e-5)
    assert cache.tokens_found


@every_scope
@pytest.mark.parametrize("family", ["Mistral with a window", "Qwen2 with a window"])
def test_a_window_changes_nothing_up_to_its_length_and_something_beyond(family, scope):
    model, plain, bank = adapted(family)
    network = packed(model, LABELS, bank, scope)
    for tokens, same in ((WINDOW, True), (WINDOW + 20, False)):
        (prompt,) = random_prompts((tokens - 2,), 2)
        wanted = alone(plain, [prompt], bank, scope)
        found = network.label_logits([prompt], range(SAMPLES))
        assert torch.allclose(found, wanted, rtol=5e-5, atol=5e-5) is same
