"""Labels of several tokens: the packed trie against scoring each label alone by plain PEFT LoRA."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dalorra.adapter.layer import StochasticPeftModel, mask_logits, stochastic_layers
from dalorra.base.model import BaseModel
from dalorra.forward.batches import packed_row_count
from dalorra.forward.llama.prefix_cache import PrefixCache
from dalorra.forward.reference import answer_logits
from dalorra.forward.reference_rows import pack
from dalorra.labels import LabelTrie, PathSums, end_apart, tail_of
from dalorra.posteriors.bank import MaskBank
from dalorra.prompts import Prompt, PromptTokenizer, Scope
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
)

SCOPES: tuple[Scope, ...] = ("answer_tokens", "all_tokens")
LABELS = {
    "no": " negative",
    "never": " negative e",  # begins with another label
    "to_arrive": " to_a",
    "to_be": " to_be",
    "yes": " positive",
    "x": "!",
}
BY_TRIE = FORMAT.model_copy(update={"labels": LABELS})


@dataclass(frozen=True)
class Case:
    """One adapter with such labels, its plain twin and a bank."""

    base: BaseModel
    model: StochasticPeftModel
    twin: PlainLora
    bank: MaskBank
    prompts: list[Prompt]
    trie: LabelTrie
    scope: Scope

    def expected(self, prompts: Sequence[Prompt] | None = None) -> Tensor:
        """Log-probabilities `[B, M, K]`: every label, sample and prompt in forwards of its own."""
        return torch.stack(
            [
                torch.stack(
                    [
                        torch.stack([self.alone(prompt, mask, path) for path in self.trie.paths])
                        for mask in self.bank.masks
                    ]
                )
                for prompt in prompts or self.prompts
            ]
        )

    def alone(self, prompt: Prompt, mask: Tensor, path: tuple[int, ...]) -> Tensor:
        steps = [
            self.twin.logits(Prompt(prompt.prompt_ids, (*prompt.cue_ids, *path[:i])), mask)
            for i in range(len(path))
        ]
        found = [step.log_softmax(-1)[token] for step, token in zip(steps, path, strict=True)]
        return torch.stack(found).sum()


def case(
    scope: Scope,
    *,
    samples: int = 2,
    modules: Sequence[str] = MODULES,
    last_layers: int | None = None,
    sentences: Sequence[str] = SENTENCES,
    **options: Any,
) -> Case:
    base = tiny_base(**options)
    plain = copy.deepcopy(base.model)
    model = tiny_adapter(base, modules=modules, last_layers=last_layers)
    tokenizer = PromptTokenizer(base.tokenizer, BY_TRIE)
    assert tokenizer.trie is not None
    twin = PlainLora(plain, model, scope)
    prompts = [tokenizer.encode(sentence) for sentence in sentences]
    return Case(base, model, twin, tiny_bank(model, samples), prompts, tokenizer.trie, scope)


def reference(c: Case, prompts: Sequence[Prompt], samples: range) -> Tensor:
    with torch.no_grad():
        return answer_logits(c.model, pack(prompts, samples, c.scope), c.bank, c.trie)


def served(c: Case, prompts: Sequence[Prompt], samples: range) -> Tensor:
    return packed(c.model, c.trie, c.bank, c.scope).label_logits(prompts, samples).clone()


Forward = Callable[[Case, Sequence[Prompt], range], Tensor]
FORWARDS = pytest.mark.parametrize("forward", [reference, served])


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=5e-5)  # sums of up to 12 logarithms
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), rtol=0, atol=1e-5)


@FORWARDS
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    "options",
    [
        {"samples": 3},
        {"tied": True},
        {"layers": 1},
        {"layers": 3, "last_layers": 1},
        {"modules": ("lm_head",)},
        {"modules": ("q_proj", "v_proj")},
        {"modules": EVERY_LINEAR},
        {"sentences": ("good", "fine")},  # of one length: not joined
        {"sentences": ("long " * 29, "short")},
    ],
    ids=str,
)
def test_every_label_has_the_probability_that_it_has_alone(forward: Forward, scope, options):
    c = case(scope, **options)
    found = forward(c, c.prompts, range(c.bank.samples))
    assert_same(found, c.expected())
    assert found.softmax(-1).std(dim=0).max() > 0.01  # prompts differ far beyond the tolerance


@FORWARDS
@pytest.mark.parametrize("scope", SCOPES)
def test_nothing_depends_on_what_else_is_in_the_forward(forward: Forward, scope):
    c = case(scope, samples=3)
    together = forward(c, c.prompts, range(3))
    for b, prompt in enumerate(c.prompts):
        assert_same(forward(c, [prompt], range(1, 3)), together[b : b + 1, 1:])


def test_known_prefixes_change_nothing():
    c = case("answer_tokens", sentences=("good film " * 3, "good film " * 3 + "but", "good"))
    cached = packed(c.model, c.trie, c.bank, prefix_cache=(cache := PrefixCache(1 << 20)))
    for _ in range(2):
        assert_same(cached.label_logits(c.prompts, range(2)), c.expected())
    assert cache.tokens_found > 0


@pytest.mark.parametrize("scope", SCOPES)
def test_answers_are_normalised_and_the_head_is_sampled_with_the_rest(scope):
    c = case(scope)
    bank = replace(c.bank, head_probabilities=torch.full((4,), 0.5))  # asks to integrate
    answers = packed(c.model, c.trie, bank, scope).answers(c.prompts, range(2))
    assert answers.probabilities.shape == (4, 2, 1, len(LABELS))
    assert answers.weights.tolist() == [1.0]
    expected = c.expected().softmax(-1)
    torch.testing.assert_close(answers.probabilities[:, :, 0], expected, rtol=0, atol=1e-5)
    tokens = torch.tensor([5, 6])  # what is read at the end of the cue does not depend on labels
    plain = [Prompt(prompt.prompt_ids, prompt.cue_ids) for prompt in c.prompts]
    alike = packed(c.model, tokens, c.bank, scope).answers(plain, range(2)).features
    torch.testing.assert_close(answers.features, alike, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_trie_of_single_tokens_answers_as_tokens_do(scope):
    c = case(scope)
    tokens = torch.tensor([5, 6, 9])
    trie = LabelTrie(tuple((token,) for token in tokens.tolist()))
    by_trie = [replace(prompt, trie=trie) for prompt in c.prompts]
    plain = [replace(prompt, trie=None) for prompt in c.prompts]
    found = packed(c.model, trie, c.bank, scope).answers(by_trie, range(2)).probabilities
    expected = packed(c.model, tokens, c.bank, scope).answers(plain, range(2)).probabilities
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scope", SCOPES)
def test_gradients_are_those_of_the_labels_alone(scope):
    c = case(scope, sentences=SENTENCES[:2])
    masks = torch.sigmoid(mask_logits(c.model))[None].expand(2, -1, -1)
    rows = pack(c.prompts, range(2), scope)
    found = answer_logits(c.model, rows, MaskBank(masks), c.trie).softmax(-1)[..., 1].sum()
    layers = stochastic_layers(c.model)
    tensors = {f"{n} {k}": t for n, layer in layers.items() for k, t in layer.tensors.items()}
    gradients = torch.autograd.grad(found, list(tensors.values()))
    for (name, tensor), gradient in zip(tensors.items(), gradients, strict=True):
        place = int(gradient.abs().argmax())  # a finite difference where it is largest
        with torch.no_grad():
            flat, ends = tensor.view(-1), []
            for step in (1e-2, -2e-2):
                flat[place] += step
                moved = MaskBank(torch.sigmoid(mask_logits(c.model))[None].expand(2, -1, -1))
                ends.append(answer_logits(c.model, rows, moved, c.trie).softmax(-1)[..., 1].sum())
            flat[place] += 1e-2
        slope = float(ends[0] - ends[1]) / 2e-2
        assert float(gradient.view(-1)[place]) == pytest.approx(slope, rel=0.05, abs=2e-3), name


@pytest.mark.parametrize("scope", SCOPES)
def test_the_rows_of_a_trie_are_counted(scope):
    c = case(scope)
    for prompt in c.prompts:
        rows = pack([prompt], range(3), scope)
        assert packed_row_count(prompt, 3, scope) == rows.input_ids.numel()
    prompt = Prompt((1, 2, 3), (4, 5), trie=LabelTrie(((6,), (7, 8), (7, 9, 9))))
    assert packed_row_count(prompt, 10, "answer_tokens") == 3 + 10 * 4
    assert packed_row_count(prompt, 10, "all_tokens") == 10 * 7


def test_a_tail_worked_out_by_hand():
    trie = LabelTrie(((6,), (7, 8), (7, 9, 1), (5, 2)))
    assert trie.nodes == ((7,), (7, 9), (5,))
    tail = tail_of((3, 4), trie)
    assert tail.ids.tolist() == [3, 4, 7, 9, 5]
    assert tail.depths.tolist() == [0, 1, 2, 3, 2]
    seen = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4]]
    assert [row.nonzero().flatten().tolist() for row in tail.visible] == seen


paths = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), unique=True)


@given(paths.filter(lambda found: len(found) > 1))
@settings(deadline=None)
def test_no_label_begins_another_and_together_they_are_at_most_certain(given_paths):
    found = end_apart(given_paths, end=9)
    assert found is not None
    assert len(set(found)) == len(given_paths)
    for path, own in zip(found, given_paths, strict=True):
        assert path in (own, (*own, 9))
        assert not any(other != path and other[: len(path)] == path for other in found)
    trie = LabelTrie(found)
    sums = PathSums.of(trie, torch.device("cpu"))
    logits = torch.randn(trie.rows, 10, generator=torch.Generator().manual_seed(1)).double()
    probabilities = sums(logits[:, sums.tokens].float(), logits.logsumexp(-1).float()).exp()
    assert probabilities.sum() <= 1 + 1e-5
    place = {node: i for i, node in enumerate(((), *trie.nodes))}
    for path, probability in zip(found, probabilities, strict=True):
        steps = [logits[place[path[:i]]].softmax(-1)[t] for i, t in enumerate(path)]
        assert float(probability) == pytest.approx(float(torch.stack(steps).prod()), rel=1e-4)


def test_without_an_end_of_text_token_prefixes_cannot_be_told_apart():
    assert end_apart([(1,), (1, 2)], end=None) is None
    assert end_apart([(1, 3), (1, 2)], end=None) == ((1, 3), (1, 2))
