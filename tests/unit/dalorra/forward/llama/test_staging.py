"""What crosses between host and device: the prompts, once, and nothing that would be waited for.

The device is `meta`, which has no values: whoever asks it for one fails.
"""

from collections import Counter
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from dalorra.adapter.layer import module_tensors
from dalorra.forward.llama.network import PackedLlama
from dalorra.forward.llama.prefix_cache import PrefixCache
from dalorra.forward.llama.staging import StagedPrompts
from dalorra.posteriors.bank import BankSpec
from dalorra.prompts import Scope
from tests.tiny import EXAMPLES, packed, random_prompts, tiny_adapter, tiny_base

META = torch.device("meta")
PARTS = 3  # ids, lengths, known


class Crossings(TorchDispatchMode):
    """Counts operations with tensors of both, and tensors made there from the host's lists."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self._tensor = torch.tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        if {tensor.device.type for tensor in tensors} == {"cpu", "meta"}:
            self.seen[str(func)] += 1
        return out

    def tensor(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """In the place of `torch.tensor`, which copies where no dispatch sees it."""
        made = self._tensor(*args, **kwargs)
        self.seen["torch.tensor"] += made.device == META
        return made


@pytest.fixture
def crossings(monkeypatch):
    mode = Crossings()
    monkeypatch.setattr(torch, "tensor", mode.tensor)
    return mode


def on_meta(bank: Any) -> Any:
    """A bank with its tensors on the device."""
    moved = {
        field.name: tree_map_only(torch.Tensor, lambda t: t.to(META), getattr(bank, field.name))
        for field in fields(bank)
    }
    return type(bank)(**moved)


def network_on_meta(name: str, scope: Scope, cache: PrefixCache | None = None) -> PackedLlama:
    posterior = EXAMPLES[name][1]
    model = tiny_adapter(tiny_base(), posterior)
    bank = posterior.bank(module_tensors(model), BankSpec(samples=3))
    labels = torch.tensor([20, 33], device=META)
    return packed(model.to(META), labels, on_meta(bank), scope, cache)


@pytest.mark.parametrize("lengths", [(20, 9, 31), (20, 20)], ids=["joined", "of one length"])
@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_only_the_prompts_cross_and_nothing_is_read_back(
    name: str, scope: Scope, lengths: tuple[int, ...], crossings, monkeypatch
):
    def samples_in_use(index: torch.Tensor, **_: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.arange(3, device=META), index

    monkeypatch.setattr(torch.Tensor, "unique", samples_in_use)  # asked when noise is arranged
    network, prompts = network_on_meta(name, scope), random_prompts(lengths, 2)
    samples = range(network.bank.samples)
    network.answers(prompts, samples)  # the noise is arranged once
    crossings.seen.clear()
    with crossings:
        found = network.answers(prompts, samples)
    assert found.probabilities.device == found.features.device == META
    assert sum(crossings.seen.values()) == PARTS, crossings.seen


def test_a_known_prefix_brings_nothing_more(crossings):
    network = network_on_meta("dalorra", "answer_tokens", PrefixCache(1 << 20))
    prompts = random_prompts((20, 20), 2)
    network.answers(prompts, range(3))
    crossings.seen.clear()
    with crossings:
        network.answers(prompts, range(3))
    assert sum(crossings.seen.values()) == PARTS, crossings.seen


def test_crossings_are_seen(crossings):
    there = torch.ones(3, device=META)
    with crossings:
        torch.tensor([1.0, 2.0], device=META)
        there[torch.tensor([0])]
        torch.ones(2).to(META)
        torch.arange(3, device=META)
    assert sum(crossings.seen.values()) == 3
    with pytest.raises((RuntimeError, NotImplementedError)):
        there.sum().item()


def test_padding_keeps_the_prompts_and_adds_empty_ones():
    staged = StagedPrompts.of(random_prompts((3, 5), 2), "answer_tokens", [0, 1])
    wide = staged.padded(4, 32, 8)
    assert wide.ids.shape == (4, 8)
    assert wide.longest == 8
    assert torch.equal(wide.ids[:2, :4], staged.ids)
    assert wide.lengths.tolist() == [3, 4, 0, 0]
    assert wide.known.tolist() == [0, 1, 0, 0]
    assert wide.ids[:, 4:].eq(0).all()


def test_joined_prompts_follow_each_other_and_padding_is_at_the_end():
    inputs = random_prompts((3, 5), 2)
    staged = StagedPrompts.of(inputs, "answer_tokens", [0, 1], joined=True)
    assert staged.ids.tolist() == [[*inputs[0].prompt_ids, *inputs[1].prompt_ids[1:]]]
    assert (staged.longest, staged.starts.tolist()) == (4, [0, 3])
    wide = staged.padded(3, 32, 16)
    assert wide.ids.shape == (1, 32)
    assert torch.equal(wide.ids[:, :7], staged.ids)
    assert wide.lengths.tolist() == [3, 4, 0]
    assert wide.longest == 16
