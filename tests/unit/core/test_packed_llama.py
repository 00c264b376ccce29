"""The packed network returns what the unmodified transformers model returns, for every plan."""

import copy
from typing import Any, cast

import pytest
import torch

from dalorra.adapter.layer import StochasticPeftModel, attach, lora_config, mask_logits
from dalorra.forward.llama import network as packed_llama
from dalorra.forward.llama.network import PackedLlama
from dalorra.forward.reference import answer_logits
from dalorra.forward.reference_rows import pack
from dalorra.posteriors import RankMasks
from dalorra.posteriors.bank import BankSpec, MaskBank
from dalorra.posteriors.noise import RankNoise
from dalorra.prompts import Prompt, Scope
from tests.tiny import tiny_llama

LABELS = torch.tensor([1, 2, 7])
SAMPLES = 5
TOLERANCE = 2e-5  # float32, logits of order 1
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
JOINED = [False, True]
EVERY_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(
    modules: list[str], last_layers: range | None = None, *, tied: bool = False
) -> tuple[StochasticPeftModel, MaskBank]:
    base = tiny_llama(tied=tied, layers=3)
    model = attach(base, lora_config(4, 8, modules, "tiny", last_layers), RankMasks()).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    bank = MaskBank.draw(mask_logits(model).detach(), BankSpec(samples=SAMPLES))
    return model, bank


def on(device: str, bank: MaskBank) -> MaskBank:
    return MaskBank(bank.masks.to(device))


def prompts(lengths: tuple[int, ...], k: int) -> list[Prompt]:
    generator = torch.Generator().manual_seed(1)
    return [
        Prompt(tuple(torch.randint(0, 300, (n,), generator=generator).tolist()), tuple(range(k)))
        for n in lengths
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("joined", JOINED, ids=["padded", "joined"])
@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
@pytest.mark.parametrize(("lengths", "k"), [((5, 9, 0), 3), ((70, 130, 9), 2), ((4,), 1)])
@pytest.mark.parametrize(
    ("modules", "last_layers"),
    [
        (["q_proj", "v_proj", "lm_head"], None),
        (["q_proj", "v_proj", "lm_head"], range(2, 3)),
        (["q_proj", "v_proj"], range(1, 3)),
        (EVERY_LINEAR, None),
        (["o_proj", "lm_head"], None),
        (["lm_head"], None),
    ],
)
def test_equals_the_unmodified_model(
    modules: list[str],
    last_layers: range | None,
    lengths: tuple[int, ...],
    k: int,
    scope: Scope,
    joined: bool,
    device: str,
) -> None:
    model, bank = adapted(modules, last_layers)
    inputs = prompts(lengths, k)
    with torch.no_grad():
        expected = answer_logits(model, pack(inputs, range(SAMPLES), scope), bank, LABELS)
    network = PackedLlama.of(model.to(device), LABELS.to(device), joins_prompts=joined)
    got = network.label_logits(inputs, range(SAMPLES), on(device, bank), scope).cpu()
    assert (expected - got).abs().max() < TOLERANCE
    assert expected.std(dim=1).max() > 100 * TOLERANCE  # the samples do differ


@pytest.mark.parametrize("joined", JOINED, ids=["padded", "joined"])
@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
def test_members_can_be_split(scope: Scope, joined: bool) -> None:
    model, bank = adapted(["q_proj", "v_proj", "lm_head"], tied=True)
    inputs = prompts((11, 4), 3)
    network = PackedLlama.of(model, LABELS, joins_prompts=joined)
    whole = network.label_logits(inputs, range(SAMPLES), bank, scope)
    parts = [
        network.label_logits(inputs, members, bank, scope)
        for members in (range(2), range(2, SAMPLES))
    ]
    assert (whole - torch.cat(parts, dim=1)).abs().max() < TOLERANCE


def test_two_banks_do_not_mix() -> None:
    model, bank = adapted(["q_proj", "v_proj", "lm_head"])
    other = MaskBank(1.0 - bank.masks)
    inputs = prompts((6,), 2)
    network = PackedLlama.of(model, LABELS)
    first = network.label_logits(inputs, range(SAMPLES), bank, "answer_tokens")
    second = network.label_logits(inputs, range(SAMPLES), other, "answer_tokens")
    again = network.label_logits(inputs, range(SAMPLES), bank, "answer_tokens")
    assert torch.equal(first, again)
    assert (first - second).abs().max() > 100 * TOLERANCE


def test_shares_weights_with_the_model_and_keeps_their_values() -> None:
    model, _ = adapted(["q_proj", "v_proj", "lm_head"])
    before = copy.deepcopy(model.state_dict())
    PackedLlama.of(model, LABELS)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    attention = cast(Any, model.get_base_model()).model.layers[0].self_attn
    weights = (attention.k_proj.weight, attention.v_proj.base_layer.weight)
    storages = {weight.untyped_storage().data_ptr() for weight in weights}
    assert len(storages) == 1


@pytest.mark.parametrize("joined", JOINED, ids=["padded", "joined"])
@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
def test_noise_may_read_the_layer_input(scope: Scope, joined: bool) -> None:
    """A method whose noise depends on x as well as on A·x is served unchanged."""

    class InputNoise:
        samples = SAMPLES
        head_probabilities = None

        def __init__(self, model: StochasticPeftModel) -> None:
            self.modules = len(mask_logits(model))

        def noise(self, sample_index: torch.Tensor) -> list[RankNoise]:
            size = (sample_index + 1).float()[..., None]  # 0 for rows of the base alone

            def one(activations: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
                return (activations + 0.1 * inputs.mean(dim=-1, keepdim=True)) * size

            return [one] * self.modules

    model, _ = adapted(["q_proj", "v_proj", "lm_head"])
    bank = InputNoise(model)
    inputs = prompts((7, 3), 2)
    with torch.no_grad():
        expected = answer_logits(model, pack(inputs, range(SAMPLES), scope), bank, LABELS)
    network = PackedLlama.of(model, LABELS, joins_prompts=joined)
    got = network.label_logits(inputs, range(SAMPLES), bank, scope)
    assert (expected - got).abs().max() < 10 * TOLERANCE


def test_only_prompts_of_several_lengths_are_joined(monkeypatch) -> None:
    model, bank = adapted(["q_proj"])
    network = PackedLlama.of(model, LABELS, joins_prompts=True)
    joined = []
    lay_out = packed_llama.lay_out_cues

    def seen(staged: Any, *rest: Any) -> Any:
        joined.append(staged.joined)
        return lay_out(staged, *rest)

    monkeypatch.setattr(packed_llama, "lay_out_cues", seen)
    for lengths in ((4,), (4, 4), (4, 5), (0, 0)):
        network.label_logits(prompts(lengths, 2), range(2), bank, "answer_tokens")
    assert joined == [False, False, True, False]
