"""A question in a tree has the answer that it has alone: by the packed forward, by the reference.

The packed forward of one prompt is compared with plain PEFT in `test_network` and `test_tries`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dalorra.adapter.layer import StochasticPeftModel, module_tensors
from dalorra.blocks import BLOCK
from dalorra.errors import AdapterError
from dalorra.forward.batches import by_state, tree_row_count
from dalorra.forward.llama import tree, tree_attention
from dalorra.forward.llama.base import ArrangedLlama
from dalorra.forward.llama.prefix_cache import PrefixCache
from dalorra.forward.llama.questions import QuestionLlama
from dalorra.forward.network import Answers
from dalorra.forward.reference import answer_logits
from dalorra.forward.reference_rows import pack
from dalorra.labels import LabelTrie
from dalorra.posteriors.bank import BankSpec, MaskBank, NoiseBank
from dalorra.prompts import Prompt, Scope
from tests.tiny import (
    EVERY_LINEAR,
    EXAMPLES,
    MODULES,
    packed,
    packed_questions,
    tiny_adapter,
    tiny_bank,
    tiny_base,
)
from tests.tiny_families import FAMILIES, base_of

SCOPES: tuple[Scope, ...] = ("answer_tokens", "all_tokens")
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
CUE = (1, 2, 3)
SAMPLES = 3
EVERY = range(SAMPLES)

YES_NO = LabelTrie(((7,), (4,)))
LETTERS = LabelTrie(((5,), (6,), (9,), (11,)))
WORDS = LabelTrie(((5, 6), (5, 7, 8), (9,), (11, 12, 13, 14)))
NAMES = LabelTrie(((20, 21), (22,)))

every_scope = pytest.mark.parametrize("scope", SCOPES)


def random_ids(count: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, 300, (count,), generator=generator).tolist())


def ask(tokens: int, questions: Sequence[tuple[int, LabelTrie]], seed: int = 0) -> list[Prompt]:
    """Questions of so many tokens about a state of so many."""
    state = random_ids(tokens, seed)
    return [
        Prompt((*state, *random_ids(n, 100 + 10 * seed + i)), CUE, trie=trie, shared=tokens)
        for i, (n, trie) in enumerate(questions)
    ]


MIXED = [
    *ask(21, [(6, YES_NO), (1, WORDS), (9, LETTERS), (6, NAMES), (4, YES_NO)]),
    *ask(5, [(3, WORDS)], seed=1),
    *ask(12, [(2, LETTERS), (7, LETTERS)], seed=2),
]
"""Questions about three states, with options of one token and of several."""


def alone(
    model: StochasticPeftModel,
    prompt: Prompt,
    bank: NoiseBank,
    scope: Scope,
    samples: range = EVERY,
) -> Answers:
    """The ordinary packed forward of a single prompt."""
    trie = prompt.trie
    assert trie is not None
    if trie.nodes:
        return packed(model, trie, bank, scope).answers([prompt], samples)
    tokens = torch.tensor([path[0] for path in trie.paths], device=model.device)
    return packed(model, tokens, bank, scope).answers([replace(prompt, trie=None)], samples)


def check_same(found: Answers, wanted: Answers) -> None:
    assert found.probabilities.dtype == found.features.dtype == torch.float32
    close = torch.testing.assert_close
    close(found.probabilities, wanted.probabilities, rtol=0, atol=1e-5)
    close(found.weights, wanted.weights)
    close(found.features, wanted.features, rtol=1e-4, atol=1e-4)


def check_alone(
    network: QuestionLlama,
    model: StochasticPeftModel,
    prompts: Sequence[Prompt],
    bank: NoiseBank,
    samples: range = EVERY,
) -> None:
    """Every answer in the tree is that of the question alone."""
    together = network.answers(prompts, samples)
    assert len(together) == len(prompts)
    for prompt, answers in zip(prompts, together, strict=True):
        check_same(answers, alone(model, prompt, bank, network.scope, samples))


def reference(model: StochasticPeftModel, prompt: Prompt, bank: MaskBank, scope: Scope) -> Tensor:
    """Log-probabilities of the options by the unmodified model, `[M, K]`."""
    assert prompt.trie is not None
    with torch.no_grad():
        rows = pack([prompt], EVERY, scope)
        return answer_logits(model, rows, bank, prompt.trie)[0].log_softmax(-1)


@every_scope
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_unmodified_model_asked_one_by_one(family, tied, scope):
    model = tiny_adapter(base_of(family, tied=tied))
    bank = tiny_bank(model, SAMPLES)
    network = packed_questions(model, bank, scope)
    wanted = [reference(model, prompt, bank, scope) for prompt in MIXED]
    for own, answers, logits in zip(
        wanted, network.answers(MIXED, EVERY), network.label_logits(MIXED, EVERY), strict=True
    ):
        torch.testing.assert_close(logits.log_softmax(-1), own, rtol=5e-5, atol=1e-4)
        found = answers.probabilities[0, :, 0]
        torch.testing.assert_close(found, own.exp(), rtol=0, atol=1e-5)
    assert max(own.exp().std(dim=0).max() for own in wanted) > 0.05, "the samples do differ"


@pytest.mark.parametrize("device", DEVICES)
@every_scope
@pytest.mark.parametrize(
    ("modules", "last_layers", "layers"),
    [
        (MODULES, None, 3),
        (MODULES, 1, 3),
        (("q_proj", "v_proj"), 2, 3),
        (EVERY_LINEAR, None, 3),
        (EVERY_LINEAR, 1, 3),
        (("o_proj", "lm_head"), None, 2),
        (("lm_head",), None, 3),
        (MODULES, None, 1),
    ],
)
def test_equals_each_question_alone(modules, last_layers, layers, scope, device):
    model = tiny_adapter(tiny_base(layers=layers), modules=modules, last_layers=last_layers)
    bank = MaskBank(tiny_bank(model, SAMPLES).masks.to(device))
    model.to(device)
    network = packed_questions(model, bank, scope)
    check_alone(network, model, MIXED, bank)
    check_alone(network, model, MIXED[3:4], bank)
    check_alone(network, model, MIXED[1:6], bank, range(1, 2))


@every_scope
@pytest.mark.parametrize("method", EXAMPLES)
def test_noise_of_every_method(method, scope):
    _, posterior = EXAMPLES[method]
    model = tiny_adapter(tiny_base(layers=3), posterior=posterior)
    bank = posterior.bank(module_tensors(model), BankSpec(samples=SAMPLES))
    samples = range(bank.samples)
    check_alone(packed_questions(model, bank, scope), model, MIXED, bank, samples)


@every_scope
def test_a_head_is_integrated_over_options_of_one_token(scope):
    model = tiny_adapter(tiny_base(layers=3))
    on = torch.tensor([0.1, 0.5, 0.7, 0.9])
    bank = replace(tiny_bank(model, SAMPLES), head_probabilities=on)
    network = packed_questions(model, bank, scope)
    check_alone(network, model, MIXED, bank)
    masks = [answers.probabilities.shape[2] for answers in network.answers(MIXED, EVERY)]
    assert masks == [1 if prompt.trie.nodes else 16 for prompt in MIXED]


def test_another_bank_leaves_the_network_as_it_was():
    model = tiny_adapter(tiny_base(layers=3))
    bank = tiny_bank(model, SAMPLES)
    network, other = packed_questions(model, bank), MaskBank(1.0 - bank.masks)
    before = network.answers(MIXED, EVERY)
    check_alone(network.under(other), model, MIXED, other)
    for again, answers in zip(network.answers(MIXED, EVERY), before, strict=True):
        assert torch.equal(again.probabilities, answers.probabilities)


# --- nothing depends on what else is asked ---


CASES = {scope: tiny_adapter(tiny_base(layers=3)) for scope in SCOPES}


@every_scope
@given(
    chosen=st.lists(st.integers(0, len(MIXED) - 1), min_size=1, max_size=12),
    scores=st.sampled_from([1 << 18, 2_000, 100, 1]),
    waste=st.sampled_from([1 << 14, 100, 0]),
)
@settings(deadline=None, max_examples=60)
def test_neither_order_nor_company_nor_bunches_change_an_answer(scope, chosen, scores, waste):
    model = CASES[scope]
    bank = tiny_bank(model, SAMPLES)
    network = packed_questions(model, bank, scope)
    wanted = network.answers(MIXED, EVERY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "SCORES", scores)
        patch.setattr(tree_attention, "SCORES", scores)
        patch.setattr(tree, "WASTE", waste)
        found = network.answers([MIXED[i] for i in chosen], EVERY)
    for place, answers in zip(chosen, found, strict=True):
        check_same(answers, wanted[place])


def test_a_question_without_tokens_and_a_state_without_any():
    model = tiny_adapter(tiny_base(layers=3))
    bank = tiny_bank(model, SAMPLES)
    prompts = [*ask(0, [(3, YES_NO), (2, WORDS)]), *ask(4, [(0, WORDS), (2, NAMES), (0, YES_NO)])]
    for scope in SCOPES:
        check_alone(packed_questions(model, bank, scope), model, prompts, bank)


# --- the prefix cache ---


@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_is_found_again_whoever_asked(family):
    model = tiny_adapter(base_of(family))
    bank = tiny_bank(model, SAMPLES)
    cache = PrefixCache(1 << 20)
    network = packed_questions(model, bank, prefix_cache=cache)
    first = ask(3 * BLOCK, [(6, YES_NO)], seed=7)
    others = ask(3 * BLOCK, [(9, WORDS), (2, LETTERS)], seed=7)
    assert network.cached_tokens(first[0]) == 0
    check_alone(network, model, first, bank)
    assert cache.tokens_found == 0
    assert network.cached_tokens(others[0]) == 3 * BLOCK
    check_alone(network, model, [*others, *MIXED], bank)
    assert cache.tokens_found == 3 * BLOCK, "the whole state, for questions follow it"
    longer = replace(first[0], prompt_ids=(*first[0].prompt_ids, 1, 2, 3), shared=3 * BLOCK + 5)
    assert network.cached_tokens(longer) == 3 * BLOCK
    check_alone(network, model, [longer, *first], bank)
    assert cache.tokens_found == 9 * BLOCK, "as the beginning of a longer one, too"


def test_what_ordinary_prompts_read_is_a_state_of_questions_too():
    model = tiny_adapter(tiny_base(layers=3))
    bank, cache = tiny_bank(model, SAMPLES), PrefixCache(1 << 20)
    network = packed_questions(model, bank, prefix_cache=cache)
    prompts = ask(2 * BLOCK, [(6, YES_NO), (4, WORDS)])
    plain = packed(model, torch.tensor([1, 2]), bank, prefix_cache=cache)
    plain.answers([Prompt((*prompts[0].state_ids, 5), CUE)], EVERY)
    check_alone(network, model, prompts, bank)
    assert cache.tokens_found == 2 * BLOCK


def test_under_all_tokens_the_prefix_cache_is_left_alone():
    model = tiny_adapter(tiny_base(layers=3))
    cache = PrefixCache(1 << 20)
    network = packed_questions(model, tiny_bank(model, SAMPLES), "all_tokens", cache)
    for _ in range(2):
        network.answers(MIXED, EVERY)
    assert cache.tokens_looked_up == 0
    assert {network.cached_tokens(prompt) for prompt in MIXED} == {0}


# --- rows, and what is more than a forward has ---


@pytest.fixture
def rows(monkeypatch) -> dict[str, list[int]]:
    """Rows that are embedded, and rows of each layer, forward by forward."""
    seen: dict[str, list[int]] = {"embedded": [], "computed": []}
    embed, after_attention = ArrangedLlama.embed, ArrangedLlama.after_attention

    def embedded(self: ArrangedLlama, ids: Tensor) -> Tensor:
        seen["embedded"].append(ids.numel())
        return embed(self, ids)

    def computed(self: ArrangedLlama, layer: Any, x: Tensor, *rest: Any) -> Tensor:
        seen["computed"].append(x.shape[:-1].numel())
        return after_attention(self, layer, x, *rest)

    monkeypatch.setattr(ArrangedLlama, "embed", embedded)
    monkeypatch.setattr(ArrangedLlama, "after_attention", computed)
    return seen


@every_scope
def test_the_rows_of_a_tree_are_counted_and_in_the_last_layer_are_those_that_are_read(scope, rows):
    model = tiny_adapter(tiny_base(layers=3))
    packed_questions(model, tiny_bank(model, SAMPLES), scope).answers(MIXED, EVERY)
    counted = sum(
        tree_row_count([MIXED[i] for i in places], SAMPLES, scope)
        for places in by_state(MIXED).values()
    )
    ends = SAMPLES * sum(prompt.trie.rows for prompt in MIXED)
    assert rows["computed"] == [counted, counted, ends]


def test_below_the_first_stochastic_product_tails_are_computed_once(rows):
    model = tiny_adapter(tiny_base(layers=3), last_layers=1)
    for scope in SCOPES:
        packed_questions(model, tiny_bank(model, SAMPLES), scope).answers(MIXED, EVERY)
        one = sum(
            tree_row_count([MIXED[i] for i in places], 1, scope)
            for places in by_state(MIXED).values()
        )
        assert rows["computed"][:2] == [one, one]
        rows["computed"].clear()


@pytest.mark.parametrize("device", DEVICES)
@every_scope
@pytest.mark.parametrize("cached", [False, True], ids=["no prefix cache", "prefix cache"])
@pytest.mark.parametrize(("modules", "last_layers"), [(MODULES, None), (EVERY_LINEAR, 1)])
def test_in_turn_equals_the_whole(modules, last_layers, cached, scope, device, rows):
    model = tiny_adapter(tiny_base(layers=3), modules=modules, last_layers=last_layers)
    bank = MaskBank(tiny_bank(model, SAMPLES).masks.to(device))
    model.to(device)
    for prompts in (
        ask(40, [(6, YES_NO), (30, WORDS), (9, LETTERS), (6, NAMES), (4, YES_NO)]),
        ask(0, [(6, YES_NO), (30, WORDS)]),
    ):
        wanted = packed_questions(model, bank, scope).answers(prompts, EVERY)
        tail = max(prompt.tail_rows for prompt in prompts)
        for budget in (1, 7, 20, 45, 60, 101, 10_000):
            cache = PrefixCache(1 << 20) if cached else None
            network = packed_questions(model, bank, scope, cache)
            for _ in range(2):  # the prefix cache is filled, and then read
                rows["computed"].clear()
                found = network.in_turn(prompts, EVERY, budget)
                assert max(rows["computed"]) <= max(budget, tail)
                for answers, own in zip(found, wanted, strict=True):
                    check_same(answers, own)


def test_a_long_state_is_read_once_for_all_questions_and_samples(rows):
    model = tiny_adapter(tiny_base(layers=3))
    network = packed_questions(model, tiny_bank(model, SAMPLES))
    prompts = ask(150, [(6, YES_NO), (7, LETTERS), (8, YES_NO), (90, YES_NO)])
    network.in_turn(prompts, EVERY, 40)
    state, long_one = [40, 40, 40, 30], [40, 40, 10, len(CUE)]
    two, one = 6 + 7 + 2 * len(CUE), 8 + len(CUE)
    assert rows["embedded"] == [*state, two, one, *long_one]
    rows["embedded"].clear()
    packed_questions(model, tiny_bank(model, SAMPLES), "all_tokens").in_turn(prompts, EVERY, 60)
    assert sum(rows["embedded"]) == SAMPLES * (150 + 6 + 7 + 8 + 90 + 4 * len(CUE))


# --- precision, and what is refused ---


@every_scope
def test_bfloat16_errs_by_its_roundings_like_each_question_alone(scope):
    model = tiny_adapter(tiny_base(layers=3))
    bank = tiny_bank(model, SAMPLES)
    exact = packed_questions(model, bank, scope).answers(MIXED, EVERY)
    model.get_base_model().bfloat16()  # A and B stay as they are
    rounded = packed_questions(model, bank, scope).answers(MIXED, EVERY)
    one_by_one = [alone(model, prompt, bank, scope) for prompt in MIXED]

    def error(found: Sequence[Answers]) -> Tensor:
        gaps = [
            (a.probabilities - b.probabilities).flatten() for a, b in zip(found, exact, strict=True)
        ]
        return torch.cat(gaps).square().mean().sqrt()

    assert error(rounded) < 1.5 * error(one_by_one)
    assert error(rounded) < 0.05


def test_a_prompt_without_options_is_refused():
    model = tiny_adapter(tiny_base(layers=3))
    network = packed_questions(model, tiny_bank(model, SAMPLES))
    with pytest.raises(AdapterError, match="prompts with options"):
        network.answers([Prompt((1, 2), CUE)], EVERY)
