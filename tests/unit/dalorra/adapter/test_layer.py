import copy
import json
import math
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from dalorra.adapter.layer import (
    StochasticLoraLinear,
    attach,
    detach,
    lora_config,
    mask_logits,
    rank_noise,
    stochastic_layers,
)
from dalorra.posteriors import RankMasks
from dalorra.posteriors.noise import RowMask, base_only
from tests.tiny import MODULES, tiny_adapter, tiny_base, tiny_llama

IDS = torch.arange(12).view(2, 6) + 5


def trunk(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=IDS).logits
    return logits


# --- attach and detach ---


@pytest.mark.parametrize("tied", [False, True])
def test_a_new_adapter_changes_nothing(tied):
    base = tiny_llama(tied=tied)
    before = trunk(base)
    model = attach(base, lora_config(4, 8.0, MODULES, "tiny"), RankMasks(prior=0.8))
    assert torch.equal(trunk(model), before)
    torch.testing.assert_close(torch.sigmoid(mask_logits(model)), torch.full((5, 4), 0.8))
    assert all((layer.up == 0).all() for layer in stochastic_layers(model).values())
    assert all((layer.down != 0).any() for layer in stochastic_layers(model).values())


def test_only_the_adapter_is_trainable_and_is_float32_on_any_base():
    for dtype in (torch.float32, torch.bfloat16):
        model = attach(tiny_llama().to(dtype), lora_config(4, 8.0, MODULES, "tiny"), RankMasks())
        trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert len(trainable) == 3 * 5
        assert all("lora_" in name for name in trainable)
        assert {p.dtype for p in trainable.values()} == {torch.float32}


@pytest.mark.parametrize(("layers", "last", "adapted"), [(2, None, (0, 1)), (3, 1, (2,))])
def test_modules_are_listed_in_model_order_with_the_head_last(layers, last, adapted):
    model = tiny_adapter(tiny_base(layers=layers), last_layers=last)
    assert list(stochastic_layers(model)) == [
        *(f"model.layers.{i}.self_attn.{part}_proj" for i in adapted for part in "qv"),
        "lm_head",
    ]
    assert mask_logits(model).shape == (2 * len(adapted) + 1, 4)
    assert mask_logits(model).requires_grad


@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_head_stays_tied_and_an_untied_one_untied(tied):
    base = tiny_base(tied=tied).model
    attach(base, lora_config(4, 8.0, MODULES, "tiny"), RankMasks())
    assert isinstance(base.lm_head, StochasticLoraLinear)
    assert (base.lm_head.base_layer.weight is base.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("tied", [False, True])
def test_detach_gives_the_base_back(tied):
    base = tiny_base(tied=tied)
    before, weights = trunk(base.model), copy.deepcopy(base.model.state_dict())
    modules = {name: type(module) for name, module in base.model.named_modules()}
    model = tiny_adapter(base)
    assert not torch.equal(trunk(model), before)
    assert detach(model) is base.model
    assert {name: type(m) for name, m in base.model.named_modules()} == modules
    assert torch.equal(trunk(base.model), before)
    assert list(base.model.state_dict()) == list(weights)
    found = base.model.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    with warnings.catch_warnings():
        warnings.simplefilter("error", category=UserWarning)  # PEFT's "for a second time"
        warnings.filterwarnings("ignore", category=FutureWarning)
        again = attach(base.model, lora_config(4, 8.0, MODULES, "tiny"), RankMasks())
    assert torch.equal(trunk(again), before)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lora_config(4, 8.0, ["no_such_proj"], "tiny"), "no_such_proj"),
        (lora_config(4, 8.0, ["q_proj", "v_porj"], "tiny"), "no linear module 'v_porj'"),
        (lora_config(4, 8.0, ["embed_tokens"], "tiny"), "no linear module 'embed_tokens'"),
    ],
)
def test_an_impossible_adapter_leaves_the_base_as_it_was(config, message):
    base = tiny_llama()
    before = list(base.state_dict())
    with pytest.raises(ValueError, match=message):
        attach(base, config, RankMasks())
    assert list(base.state_dict()) == before


# --- the layer ---


def layer_of(seed: int = 0) -> StochasticLoraLinear:
    return stochastic_layers(tiny_adapter(tiny_base(), seed=seed))["lm_head"]


def test_the_update_is_equation_1():
    layer = layer_of()
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    z = torch.randint(0, 2, (2, 3, 4), generator=torch.Generator().manual_seed(1)).float()
    assert layer.scale == 3.0
    for mask in (z, z[:1, :1], z[:, :1], z[:1]):
        expected = layer.base_layer(x)
        for b in range(2):
            for row in range(3):
                z_row = mask.expand(2, 3, 4)[b, row]
                delta = 3.0 * layer.up @ torch.diag(z_row) @ layer.down
                expected[b, row] += delta @ x[b, row]
        with rank_noise([layer], [RowMask(mask)]):
            torch.testing.assert_close(layer(x), expected)


def test_a_mask_of_zeros_is_the_base_and_base_only_is_exactly_it():
    layer = layer_of()
    x = torch.randn(2, 3, 32)
    with rank_noise([layer], [base_only]):
        assert torch.equal(layer(x), layer.base_layer(x))
        torch.testing.assert_close(
            layer.rows(x, torch.tensor([3, 7])), layer.base_layer(x)[..., [3, 7]]
        )
    with rank_noise([layer], [RowMask(torch.zeros(1, 1, 4))]):
        assert torch.equal(layer(x), layer.base_layer(x))
    assert (base_only(x, x) == 0).all()


def test_rows_are_those_of_the_full_output():
    layer = layer_of()
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    indices = torch.tensor([7, 3, 300])
    mask = RowMask(torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1)))
    for noise in (None, mask):
        with rank_noise([layer], [noise]):
            torch.testing.assert_close(layer.rows(x, indices), layer(x)[..., indices])


def test_rows_of_a_bfloat16_head_are_float32():
    base = tiny_base()
    base.model.to(torch.bfloat16)
    layer = stochastic_layers(tiny_adapter(base))["lm_head"]
    x = torch.randn(1, 1, 32, dtype=torch.bfloat16)
    assert layer.rows(x, torch.tensor([1, 2])).dtype == torch.float32
    assert layer(x).dtype == torch.bfloat16
    weight = layer.base_layer.weight[[1, 2]].float() + 3.0 * layer.up[[1, 2]] @ layer.down
    torch.testing.assert_close(layer.rows(x, torch.tensor([1, 2])), x.float() @ weight.T)


def test_without_noise_and_at_infinite_logits_it_is_plain_peft_lora():
    base = tiny_base()
    plain_base = copy.deepcopy(base.model)
    model = tiny_adapter(base)
    layers = stochastic_layers(model)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=list(layers))
    plain = get_peft_model(plain_base, config).eval()
    with torch.no_grad():
        for name, layer in layers.items():
            twin = plain.base_model.model.get_submodule(name)
            twin.lora_A["default"].weight.copy_(layer.down)
            twin.lora_B["default"].weight.copy_(layer.up)
            layer.mask_logits.fill_(math.inf)
    expected = trunk(plain)
    torch.testing.assert_close(trunk(model), expected)
    masks = torch.sigmoid(mask_logits(model))
    with rank_noise(list(layers.values()), [RowMask(z[None, None]) for z in masks]):
        torch.testing.assert_close(trunk(model), expected)


def test_merging_is_refused():
    model = tiny_adapter(tiny_base())
    before = copy.deepcopy(model.state_dict())
    for merge in (model.merge_adapter, model.merge_and_unload, layer_of().merge):
        with pytest.raises(ValueError, match="no single merged weight; `dalorra export`"):
            merge()
    assert all(torch.equal(a, before[name]) for name, a in model.state_dict().items())


def test_saving_through_peft_never_writes_a_base_weight(tmp_path):
    base = tiny_base(tied=True)
    tiny_adapter(base).save_pretrained(str(tmp_path))
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    header = (tmp_path / "adapter_model.safetensors").read_bytes()[8:8192].split(b"}}")[0]
    names = [name for name in json.loads(header + b"}}") if name != "__metadata__"]
    assert len(names) == 3 * 5
    assert not [name for name in names if "base_layer" in name or "embed" in name]
    assert size < 20_000


# --- rank_noise ---


def test_noise_is_restored_afterwards_and_when_the_block_fails():
    layers = list(stochastic_layers(tiny_adapter(tiny_base())).values())
    outer = [RowMask(torch.rand(1, 1, 4)) for _ in layers]
    with rank_noise(layers, outer):
        with rank_noise(layers, [base_only] * 5):
            assert all(layer.rank_noise is base_only for layer in layers)
        assert [layer.rank_noise for layer in layers] == outer
        with pytest.raises(IndexError), rank_noise(layers, [base_only] * 5):
            layers[0](torch.zeros(1, 1, 32))[9]
        assert [layer.rank_noise for layer in layers] == outer
    assert all(layer.rank_noise is None for layer in layers)


def test_noise_for_another_number_of_layers_is_refused_and_nothing_is_left_set():
    layers = list(stochastic_layers(tiny_adapter(tiny_base())).values())
    for count in (4, 6):
        with pytest.raises(ValueError, match="zip"), rank_noise(layers, [base_only] * count):
            pass
        assert all(layer.rank_noise is None for layer in layers)
