"""Labels as classes of a head at the end of the cue, against plain PEFT with it for `lm_head`."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dalorra.adapter.layer import (
    HEAD,
    StochasticPeftModel,
    class_head,
    detach,
    mask_logits,
    module_tensors,
)
from dalorra.forward.llama.prefix_cache import PrefixCache
from dalorra.forward.reference import answer_logits
from dalorra.forward.reference_rows import pack
from dalorra.posteriors.bank import MaskBank
from dalorra.prompts import Prompt, PromptTokenizer, Scope
from tests.reference import PlainLora
from tests.tiny import (
    EVERY_LINEAR,
    FORMAT,
    SENTENCES,
    packed,
    tiny_adapter,
    tiny_bank,
    tiny_base,
    tiny_prompts,
)
from tests.tiny_families import FAMILIES, base_of

SCOPES: tuple[Scope, ...] = ("answer_tokens", "all_tokens")
CLASSES = 7
LABELS = torch.arange(CLASSES)


@dataclass(frozen=True)
class Case:
    """One adapter with a class head, its plain twin and a bank."""

    model: StochasticPeftModel
    twin: PlainLora
    bank: MaskBank
    prompts: list[Prompt]
    scope: Scope

    def expected(self) -> Tensor:
        """Logits `[B, M, K]`, every sample and prompt in a forward of its own."""
        return self.twin.bank_logits(self.prompts, self.bank.masks, tuple(range(CLASSES)))


def case(
    scope: Scope,
    *,
    family: str | None = None,
    samples: int = 3,
    sentences: Sequence[str] = SENTENCES,
    modules: Sequence[str] = ("q_proj", "v_proj"),
    last_layers: int | None = None,
    **options: Any,
) -> Case:
    base = base_of(family, **options) if family else tiny_base(**options)
    plain = copy.deepcopy(base.model)
    model = tiny_adapter(base, modules=modules, last_layers=last_layers, classes=CLASSES)
    head = class_head(model)
    assert head is not None
    plain.set_submodule(HEAD, nn.Linear(*reversed(head.weight.shape), bias=False))
    plain.get_submodule(HEAD).load_state_dict(head.state_dict())
    bank, prompts = tiny_bank(model, samples), tiny_prompts(base, tuple(sentences))
    return Case(model, PlainLora(plain, model, scope), bank, prompts, scope)


def reference(c: Case) -> Tensor:
    with torch.no_grad():
        rows = pack(c.prompts, range(c.bank.samples), c.scope)
        return answer_logits(c.model, rows, c.bank, LABELS)


def served(c: Case) -> Tensor:
    return packed(c.model, LABELS, c.bank, c.scope).label_logits(c.prompts, range(c.bank.samples))


FORWARDS: list[Callable[[Case], Tensor]] = [reference, served]
every_scope = pytest.mark.parametrize("scope", SCOPES)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("forward", FORWARDS)
@every_scope
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied": True},
        {"layers": 1},
        {"layers": 3, "last_layers": 1},
        {"modules": EVERY_LINEAR},
        {"sentences": ("good", "fine")},  # of one length: not joined
    ],
    ids=str,
)
def test_logits_are_those_of_a_model_that_has_the_head_for_its_own(forward, scope, options):
    c = case(scope, **options)
    assert_same(forward(c), c.expected())
    assert c.expected().std(dim=1).max() > 1e-2, "the samples do differ"


@every_scope
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_them(family, scope):
    c = case(scope, family=family)
    assert_same(served(c), c.expected())


def test_known_prefixes_and_pieces_change_nothing():
    c = case("answer_tokens", sentences=("good film " * 3, "good film " * 3 + "but", "good"))
    cached = packed(c.model, LABELS, c.bank, prefix_cache=(cache := PrefixCache(1 << 20)))
    for _ in range(2):
        assert_same(cached.label_logits(c.prompts, range(3)), c.expected())
    assert cache.tokens_found > 0
    pieces = cached.in_pieces(c.prompts[0], range(3), budget=16).probabilities[0, :, 0]
    torch.testing.assert_close(pieces, c.expected()[0].softmax(-1), rtol=0, atol=1e-5)


@every_scope
def test_a_head_without_a_mask_is_not_integrated(scope):
    c = case(scope)
    bank = replace(c.bank, head_probabilities=torch.full((4,), 0.5))  # asks to
    answers = packed(c.model, LABELS, bank, scope).answers(c.prompts, range(3))
    assert answers.weights.tolist() == [1.0]
    expected = c.expected().softmax(-1)
    torch.testing.assert_close(answers.probabilities[:, :, 0], expected, rtol=0, atol=1e-5)


@every_scope
def test_the_head_is_trained_with_the_adapter(scope):
    c = case(scope, sentences=SENTENCES[:2])
    head = class_head(c.model)
    assert head is not None
    assert head.weight.requires_grad
    rows = pack(c.prompts, range(2), scope)
    logits = answer_logits(
        c.model, rows, MaskBank(torch.sigmoid(mask_logits(c.model))[None]), LABELS
    )
    tensors = [head.weight, *module_tensors(c.model)[0].values()]
    gradients = torch.autograd.grad(logits.softmax(-1)[..., 1].sum(), tensors)
    assert all(gradient.any() for gradient in gradients)
    assert gradients[0].shape == (CLASSES, 32)


def test_what_is_trained_on_is_not_what_a_network_holds_and_the_base_loses_the_head():
    c = case("answer_tokens")
    network, before = packed(c.model, LABELS, c.bank), c.expected()
    head = class_head(c.model)
    assert head is not None
    with torch.no_grad():
        head.weight.zero_()
    assert_same(network.label_logits(c.prompts, range(3)), before)
    base = detach(c.model)
    assert not hasattr(base, "score")


def test_its_labels_need_no_tokens_of_their_own():
    labels = {"a": " yes", "b": " yes", "c": "\n", "d": " and much more"}
    by_head = FORMAT.model_copy(update={"labels": labels, "labels_by": "head"})
    tokenizer = PromptTokenizer(tiny_base().tokenizer, by_head)
    plain = PromptTokenizer(tiny_base().tokenizer, FORMAT)
    assert tokenizer.label_ids == (0, 1, 2, 3)
    assert tokenizer.encode("good") == plain.encode("good")
    assert tokenizer.labels_on(torch.device("cpu")).tolist() == [0, 1, 2, 3]
