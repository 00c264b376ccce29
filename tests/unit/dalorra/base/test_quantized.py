"""A quantised base: the same checkpoint, another precision, in both forwards."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dalorra.adapter.directory import attached, read_adapter
from dalorra.adapter.manifest import BaseReference
from dalorra.base.model import load_base_model, weight_digest
from dalorra.base.quantized import bits_of, stored_weights
from dalorra.decision.policy import Policy
from dalorra.decision.policy_digest import with_digest
from dalorra.errors import BaseModelError, ConfigError
from dalorra.forward.reference import reference_logits
from dalorra.predictor import Predictor
from dalorra.shared_base import SharedBase
from tests.tiny import (
    EVERY_LINEAR,
    predictor_on,
    save_tiny_adapter,
    tiny_base_model,
    tiny_prompts,
)
from tests.tiny_encoder import tiny_encoder_folder
from tests.tiny_quantized import in_8bit, tiny_in_8bit

without_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed"
)


def test_it_is_the_same_checkpoint(tmp_path):
    quantised = tiny_in_8bit(tmp_path / "base")
    plain = load_base_model(str(tmp_path / "base"), device="cpu", dtype="float32")
    assert (quantised.bits, plain.bits) == ("8bit", None)
    assert quantised.digest == plain.digest
    other = tiny_in_8bit(tmp_path / "other", seed=1)
    assert other.digest != quantised.digest


def test_the_checkpoint_may_be_in_parts_and_without_the_heads_prefix(tmp_path):
    folder = tiny_base_model(tmp_path / "base")
    digest = load_base_model(str(folder), device="cpu", dtype="float32").digest
    whole = folder / "model.safetensors"
    tensors = {n.removeprefix("model."): t for n, t in load_file(whole).items()}
    names = sorted(tensors)
    for part in (0, 1):
        save_file({n: tensors[n] for n in names[part::2]}, folder / f"model-{part}.safetensors")
    whole.unlink()
    read = stored_weights(folder)
    quantised = tiny_in_8bit(tmp_path / "again")
    assert weight_digest(quantised.model, read) == digest
    with pytest.raises(BaseModelError, match=r"holds no weight model\.layers\.9\.x in safetensors"):
        read("model.layers.9.x")


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_packed_forward_answers_as_the_reference(tmp_path, scope, dtype):
    folder = tiny_base_model(tmp_path / "base", layers=3)
    base = in_8bit(folder, dtype)
    path = save_tiny_adapter(tmp_path / "adapter", base, scope, modules=(*EVERY_LINEAR, "lm_head"))
    adapter, prompts = read_adapter(path), tiny_prompts(base)
    with attached(adapter, base) as model, torch.inference_mode():
        predictor = Predictor.of(adapter, base, model)
        labels = predictor.tokenizer.labels_on(model.device)
        samples = range(predictor.samples)
        expected = reference_logits(model, prompts, samples, predictor.bank, scope, labels)
    found = predictor.label_logits(prompts)
    close = 2e-5 if dtype == "float32" else 0.05
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), rtol=close, atol=close)
    plain = predictor_on(path, load_base_model(str(folder), device="cpu", dtype=dtype))
    assert (found - plain.label_logits(prompts)).abs().max() > 1e-3, "8 bit is another function"


def test_a_promise_is_about_the_precision_that_it_was_tested_in(tmp_path):
    base = tiny_in_8bit(tmp_path / "base")
    path = save_tiny_adapter(tmp_path / "adapter", base)
    predictor = predictor_on(path, base)
    assert predictor.precision == "8bit float32 on cpu"
    policy = Policy(
        min_probability=0.0,
        max_variance=0.25,
        source="test",
        confidence=0.95,
        precisions=("8bit float32 on cpu",),
        adapter_digest=read_adapter(path).digest,
    )
    with_digest(policy).save(path)
    assert not predictor_on(path, base).policy.never_accepts
    plain = load_base_model(str(tmp_path / "base"), device="cpu", dtype="float32")
    void = predictor_on(path, plain).policy
    assert void.never_accepts
    assert "tested in 8bit float32 on cpu, and this is float32 on cpu" in void.source


def test_an_adapter_remembers_how_its_base_was(tmp_path):
    base = tiny_in_8bit(tmp_path / "base")
    reference = BaseReference.to(base)
    assert json.loads(reference.model_dump_json())["quantized"] == "8bit"
    plain = load_base_model(str(tmp_path / "base"), device="cpu", dtype="float32")
    assert "quantized" not in BaseReference.to(plain).model_dump()


def test_several_adapters_share_it_and_it_stays_as_it_was(tmp_path):
    base = tiny_in_8bit(tmp_path / "base")
    before = {name: weight.clone() for name, weight in base.model.named_parameters()}
    paths = [
        save_tiny_adapter(tmp_path / f"{n}", base, modules=EVERY_LINEAR, seed=n) for n in (1, 2)
    ]
    shared = SharedBase(base, prefix_cache_bytes=1 << 20)
    predictors = [shared.bind(shared.read(path)) for path in paths]
    for path, predictor in zip(paths, predictors, strict=True):
        prompts = tiny_prompts(base)
        again = predictor_on(path, base).predict(prompts)
        for found, expected in zip(predictor.predict(prompts), again, strict=True):
            assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    assert bits_of(base.model) == "8bit"
    for name, weight in base.model.named_parameters():
        assert torch.equal(weight, before[name])


def test_no_graphs_are_recorded_of_it(tmp_path):
    with pytest.raises(ConfigError, match="unquantised weights on a GPU, not for 8bit weights"):
        SharedBase(tiny_in_8bit(tmp_path / "base"), cuda_graphs=True)


def test_an_encoder_is_not_quantised(tmp_path):
    folder = tiny_encoder_folder(tmp_path / "encoder")
    with pytest.raises(BaseModelError, match="what works is a language model of"):
        load_base_model(str(folder), quantize="8bit")


@without_bitsandbytes
def test_says_what_brings_bitsandbytes(tmp_path):
    folder = tiny_base_model(tmp_path / "base")
    with pytest.raises(BaseModelError, match=r"4bit needs bitsandbytes: pip install 'dalorra-s"):
        load_base_model(str(folder), quantize="4bit")
