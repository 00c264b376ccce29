"""The packed network returns what the unmodified transformers model returns, for every adapter."""

import copy
from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch

from dalorra.adapter.layer import StochasticPeftModel
from dalorra.blocks import BLOCK
from dalorra.forward.llama import network as packed_llama
from dalorra.forward.llama.base import ArrangedLlama
from dalorra.forward.llama.prefix_cache import PrefixCache
from dalorra.forward.reference import answer_logits
from dalorra.forward.reference_rows import pack
from dalorra.posteriors.bank import MaskBank
from dalorra.prompts import Prompt, Scope
from tests.tiny import (
    EVERY_LINEAR,
    MODULES,
    packed,
    random_prompts,
    tiny_adapter,
    tiny_bank,
    tiny_base,
)

LABELS = torch.tensor([1, 2, 7])
SAMPLES = 5
SCOPES = ["answer_tokens", "all_tokens"]
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def expected(
    model: StochasticPeftModel, prompts: Sequence[Prompt], bank: MaskBank, scope: Scope
) -> torch.Tensor:
    with torch.no_grad():
        return answer_logits(model, pack(prompts, range(SAMPLES), scope), bank, LABELS)


def states(
    model: StochasticPeftModel, prompts: Sequence[Prompt], bank: MaskBank, scope: Scope
) -> torch.Tensor:
    """Hidden states at the end of the cue after each layer and the final norm, `[B, M, L, d]`."""
    rows, seen = pack(prompts, range(SAMPLES), scope), []
    trunk = cast(Any, model.get_base_model()).model
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
        for module in (*trunk.layers[:-1], trunk.norm)
    ]
    with torch.no_grad():
        answer_logits(model, rows, bank, LABELS)
    for hook in hooks:
        hook.remove()
    at_ends = [out[:, rows.answer_rows].reshape(len(prompts), SAMPLES, -1) for out in seen]
    return torch.stack(at_ends, dim=2)


def check_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    ("lengths", "k"),
    [((5, 9, 0), 3), ((70, 130, 9), 2), ((4,), 1), ((9, 9, 9), 3), ((130, 130), 2)],
    ids=["joined", "joined, long", "one", "of one length", "of one length, long"],
)
@pytest.mark.parametrize(
    ("modules", "last_layers"),
    [
        (MODULES, None),
        (MODULES, 1),
        (("q_proj", "v_proj"), 2),
        (EVERY_LINEAR, None),
        (("o_proj", "lm_head"), None),
        (("lm_head",), None),
    ],
)
def test_equals_the_unmodified_model(
    modules: tuple[str, ...],
    last_layers: int | None,
    lengths: tuple[int, ...],
    k: int,
    scope: Scope,
    device: str,
) -> None:
    model = tiny_adapter(tiny_base(layers=3), modules=modules, last_layers=last_layers)
    bank, prompts = tiny_bank(model), random_prompts(lengths, k)
    wanted = expected(model, prompts, bank, scope)
    after_each = states(model, prompts, bank, scope)  # of three layers, which are thirds
    there = MaskBank(bank.masks.to(device))
    network = packed(model.to(device), LABELS.to(device), there, scope)
    check_close(network.label_logits(prompts, range(SAMPLES)).cpu(), wanted)
    features = network.answers(prompts, range(SAMPLES)).features.cpu()
    torch.testing.assert_close(features, after_each, rtol=1e-4, atol=1e-4)
    assert wanted.std(dim=1).max() > 2e-3  # the samples do differ


def test_another_bank_leaves_the_network_as_it_was() -> None:
    model = tiny_adapter(tiny_base(layers=3))
    bank, prompts = tiny_bank(model), random_prompts((6,), 2)
    network, other = packed(model, LABELS, bank), MaskBank(1.0 - bank.masks)
    before = network.label_logits(prompts, range(SAMPLES))
    under_other = network.under(other).label_logits(prompts, range(SAMPLES))
    assert torch.equal(network.label_logits(prompts, range(SAMPLES)), before)
    check_close(under_other, expected(model, prompts, other, "answer_tokens"))
    assert (before - under_other).abs().max() > 2e-3


def test_shares_weights_with_the_model_and_keeps_their_values() -> None:
    model = tiny_adapter(tiny_base(layers=3))
    before = copy.deepcopy(model.state_dict())
    packed(model, LABELS, tiny_bank(model))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    attention = cast(Any, model.get_base_model()).model.layers[0].self_attn
    weights = (attention.k_proj.weight, attention.v_proj.base_layer.weight)
    storages = {weight.untyped_storage().data_ptr() for weight in weights}
    assert len(storages) == 1


def test_only_prompts_of_several_lengths_are_joined(monkeypatch) -> None:
    model = tiny_adapter(tiny_base(layers=3), modules=("q_proj",))
    network = packed(model, LABELS, tiny_bank(model))
    joined = []
    lay_out = packed_llama.lay_out_cues

    def seen(staged: Any, *rest: Any) -> Any:
        joined.append(staged.joined)
        return lay_out(staged, *rest)

    monkeypatch.setattr(packed_llama, "lay_out_cues", seen)
    for lengths in ((4,), (4, 4), (4, 5), (0, 0)):
        network.label_logits(random_prompts(lengths, 2), range(2))
    assert joined == [False, False, True, False]


@pytest.fixture
def rows(monkeypatch) -> dict[str, list[int]]:
    """Rows that are embedded, and rows of each layer, forward by forward."""
    seen: dict[str, list[int]] = {"embedded": [], "computed": []}
    embed, after_attention = ArrangedLlama.embed, ArrangedLlama.after_attention

    def embedded(self: ArrangedLlama, ids: torch.Tensor) -> torch.Tensor:
        seen["embedded"].append(ids.numel())
        return embed(self, ids)

    def computed(self: ArrangedLlama, layer: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen["computed"].append(x.shape[:-1].numel())
        return after_attention(self, layer, x, *rest)

    monkeypatch.setattr(ArrangedLlama, "embed", embedded)
    monkeypatch.setattr(ArrangedLlama, "after_attention", computed)
    return seen


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cached", [False, True], ids=["no prefix cache", "prefix cache"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    ("modules", "last_layers"),
    [(MODULES, None), (("q_proj", "v_proj"), 2), (EVERY_LINEAR, 1), (("lm_head",), None)],
)
def test_pieces_equal_the_whole(
    modules: tuple[str, ...],
    last_layers: int | None,
    scope: Scope,
    cached: bool,
    device: str,
    rows: dict[str, list[int]],
) -> None:
    model = tiny_adapter(tiny_base(layers=3), modules=modules, last_layers=last_layers).to(device)
    bank, every = tiny_bank(model), range(SAMPLES)
    plain = packed(model, LABELS.to(device), bank, scope)
    for tokens, k, budgets in ((0, 3, (1,)), (9, 3, (1, 5, 20)), (100, 2, (30, 101, 10_000))):
        (prompt,) = random_prompts((tokens,), k)
        wanted = plain.answers([prompt], every)
        for budget in budgets:
            cache = PrefixCache(1 << 20) if cached else None
            network = packed(model, LABELS.to(device), bank, scope, cache)
            for _ in range(2):  # the prefix cache is filled, and then read
                rows["computed"].clear()
                found = network.in_pieces(prompt, every, budget)
                check_close(found.probabilities, wanted.probabilities)
                check_close(found.features, wanted.features)
                assert max(rows["computed"]) <= max(budget, k if scope == "answer_tokens" else 1)
            if cache and scope == "answer_tokens":
                assert cache.tokens_found == max(tokens - 1, 0) // BLOCK * BLOCK
                check_close(network.answers([prompt], every).features, wanted.features)


def test_a_long_prompt_is_computed_once_for_all_samples(rows: dict[str, list[int]]) -> None:
    model = tiny_adapter(tiny_base(layers=3))
    network = packed(model, LABELS, tiny_bank(model))
    (prompt,) = random_prompts((150,), 3)
    network.in_pieces(prompt, range(SAMPLES), 40)
    assert rows["embedded"] == [40, 40, 40, 30, SAMPLES * 3]
    rows["embedded"].clear()
    network.in_pieces(prompt, range(SAMPLES), 7)
    assert sum(rows["embedded"]) == 150 + SAMPLES * 3


def test_under_all_tokens_the_samples_of_a_long_prompt_go_one_after_the_other(
    rows: dict[str, list[int]],
) -> None:
    model = tiny_adapter(tiny_base(layers=3))
    network = packed(model, LABELS, tiny_bank(model), "all_tokens")
    (prompt,) = random_prompts((150,), 3)
    network.in_pieces(prompt, range(SAMPLES), 100)
    assert rows["embedded"] == [100, 53] * SAMPLES
    rows["embedded"].clear()
    network.in_pieces(prompt, range(SAMPLES), 330)
    assert rows["embedded"] == [153, 153, 153], "two, two and one sample"
