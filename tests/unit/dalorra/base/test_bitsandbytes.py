"""The real library, where it is installed: pip install 'dalorra-service[quantized]'."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dalorra.adapter.layer import stochastic_layers
from dalorra.base.model import BaseModel, load_base_model
from dalorra.forward.reference import answer_logits
from dalorra.forward.reference_rows import pack
from dalorra.predictor import Predictor
from dalorra.shared_base import SharedBase
from tests.tiny import (
    EVERY_LINEAR,
    SHAPE,
    predictor_on,
    save_tiny_adapter,
    tiny_adapter,
    tiny_bank,
    tiny_prompts,
    tiny_tokenizer,
)

pytest.importorskip("bitsandbytes")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Wide enough for a block of 4 bit weights."""
    path = tmp_path_factory.mktemp("base")
    shape = SHAPE | {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.15}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=3, head_dim=16)).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def loaded(folder, quantize) -> BaseModel:
    return load_base_model(str(folder), device=DEVICE, dtype="bfloat16", quantize=quantize)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_it_is_the_same_checkpoint_in_fewer_bytes(folder, bits):
    plain, quantised = loaded(folder, "none"), loaded(folder, bits)
    assert quantised.bits == bits
    assert quantised.digest == plain.digest
    layers = [
        sum(weight.nbytes for weight in base.model.model.layers.parameters())
        for base in (plain, quantised)
    ]
    assert layers[1] < {"8bit": 0.55, "4bit": 0.3}[bits] * layers[0]


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
def test_an_adapter_is_served_on_it(folder, tmp_path, bits, scope):
    plain = loaded(folder, "none")
    path = save_tiny_adapter(tmp_path / "adapter", plain, scope, modules=EVERY_LINEAR)
    base = loaded(folder, bits)
    shared = SharedBase(base)
    predictor = shared.bind(shared.read(path))  # its golden check compares with the reference
    assert predictor.precision == f"{bits} bfloat16 on {DEVICE}"
    prompts = tiny_prompts(base)
    found, expected = (
        torch.tensor([list(a.probabilities.values()) for a in one.predict(prompts)])
        for one in (predictor, predictor_on(path, plain))
    )
    assert 1e-4 < (found - expected).abs().max() < 0.25


def test_it_is_loaded_as_it_is_asked_for(folder, tmp_path):
    path = save_tiny_adapter(tmp_path / "adapter", loaded(folder, "none"))
    for quantize, start in (("4bit", "4bit "), ("none", "bfloat16"), (None, "bfloat16")):
        options = {"device": DEVICE, "dtype": "bfloat16", "quantize": quantize}
        assert Predictor.load(path, str(folder), **options).precision.startswith(start)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_gradient_reaches_the_first_layer(folder, bits):
    """About the one of the unquantised base."""
    if (bits, DEVICE) == ("4bit", "cpu"):
        pytest.skip("refused in training: the repacked weights have no backward")
    gradients = []
    for quantize in ("none", bits):
        base = loaded(folder, quantize)
        model = tiny_adapter(base, modules=("q_proj", "down_proj"))
        bank, prompts = tiny_bank(model, samples=2), tiny_prompts(base)
        labels = torch.tensor([257, 258], device=DEVICE)
        rows = pack(prompts, range(2), "all_tokens").to(model.device)
        loss = answer_logits(model, rows, bank, labels).log_softmax(-1)[..., 0].mean()
        layer = next(iter(stochastic_layers(model).values()))
        loss.backward()
        gradients.append(torch.cat([layer.down.grad.flatten(), layer.up.grad.flatten()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.9
