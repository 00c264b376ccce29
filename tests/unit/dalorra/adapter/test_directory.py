import json
import shutil
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from dalorra.adapter.directory import (
    CONFIG_FILE,
    DIGESTED_FILES,
    WEIGHTS_FILE,
    adapter_digest,
    adapter_tensors,
    load_adapter,
    read_adapter,
    round_adapter,
    save_adapter,
)
from dalorra.adapter.layer import mask_logits, stochastic_layers
from dalorra.adapter.manifest import MANIFEST_FILE, Manifest
from dalorra.decision.policy import Policy
from dalorra.decision.policy_digest import with_digest
from tests.tiny import (
    FORMAT,
    predictor_before_saving,
    predictor_on,
    save_tiny_adapter,
    tiny_adapter,
    tiny_base,
    tiny_manifest,
    tiny_prompts,
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
@pytest.mark.parametrize("tied", [False, True])
def test_save_load_predict_is_bit_identical(tmp_path, dtype, scope, tied):
    base = tiny_base(tied=tied)
    model = tiny_adapter(base)
    manifest = tiny_manifest(base, model, scope)
    round_adapter(model, dtype)
    trained, prompts = predictor_before_saving(model, base, manifest), tiny_prompts(base)
    before = trained.posterior_samples(prompts).by_sample, trained.predict(prompts)

    digest = save_adapter(model, manifest, tmp_path / "adapter", dtype)
    loaded = predictor_on(tmp_path / "adapter", tiny_base(tied=tied))
    assert torch.equal(loaded.posterior_samples(prompts).by_sample, before[0])
    assert loaded.predict(prompts) == before[1]
    assert loaded.card.digest == digest


def test_rounding_is_what_bfloat16_storage_does_and_spares_the_mask_logits():
    base = tiny_base()
    model = tiny_adapter(base)
    layer = stochastic_layers(model)["lm_head"]
    up, down, logits = layer.up.clone(), layer.down.clone(), layer.mask_logits.clone()
    round_adapter(model, "float32")
    assert torch.equal(layer.up, up)
    round_adapter(model, "bfloat16")
    assert torch.equal(layer.up, up.bfloat16().float())
    assert torch.equal(layer.down, down.bfloat16().float())
    assert not torch.equal(layer.up, up)
    assert torch.equal(layer.mask_logits, logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_file_holds_a_b_and_float32_logits_and_nothing_else(tmp_path, dtype):
    path = save_tiny_adapter(tmp_path / "adapter", tiny_base(tied=True), dtype=dtype)
    tensors = load_file(path / WEIGHTS_FILE)
    assert len(tensors) == 3 * 5
    for name, tensor in tensors.items():
        assert name.rsplit("lora_", 1)[1] in ("A.weight", "B.weight", "mask_logits")
        assert tensor.dtype == (
            torch.float32 if "mask_logits" in name else getattr(torch, dtype)
        ), name


def test_the_directory_holds_json_and_safetensors_only(tmp_path):
    path = save_tiny_adapter(tmp_path / "adapter", tiny_base())
    assert {file.name for file in path.iterdir()} == set(DIGESTED_FILES)
    assert json.loads((path / CONFIG_FILE).read_text())["base_model_name_or_path"] == "tiny-llama"
    assert str(tmp_path) not in "".join(
        (path / name).read_text() for name in (CONFIG_FILE, MANIFEST_FILE)
    )
    assert path.stat().st_mode & 0o777 == 0o755
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"], "no staging folder is left"


def test_a_bfloat16_base_keeps_the_logits_and_the_bank_of_a_float32_one(tmp_path):
    path = save_tiny_adapter(tmp_path / "adapter", tiny_base())
    exact = load_adapter(read_adapter(path), tiny_base())
    half = tiny_base()
    half.model.to(torch.bfloat16)
    model = load_adapter(read_adapter(path), half)
    assert torch.equal(mask_logits(model), mask_logits(exact))
    assert torch.equal(
        stochastic_layers(model)["lm_head"].up, stochastic_layers(exact)["lm_head"].up
    )


def test_a_loaded_adapter_is_frozen_and_in_evaluation_mode(tmp_path):
    path = save_tiny_adapter(tmp_path / "adapter", tiny_base())
    model = load_adapter(read_adapter(path), tiny_base())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_read_adapter_returns_what_was_saved(tmp_path):
    base = tiny_base(layers=3)
    model = tiny_adapter(base, last_layers=1)
    manifest = tiny_manifest(base, model, last_layers=1)
    digest = save_adapter(model, manifest, tmp_path / "adapter", "float32")
    adapter = read_adapter(tmp_path / "adapter")
    assert adapter.manifest == manifest
    assert adapter.policy is None
    assert adapter.digest == digest
    tensors = adapter_tensors(model)
    assert adapter.tensors.keys() == tensors.keys()
    assert all(torch.equal(adapter.tensors[name], tensor) for name, tensor in tensors.items())
    again = load_adapter(adapter, tiny_base(layers=3))
    assert list(stochastic_layers(again)) == manifest.modules


def test_a_policy_that_names_the_adapter_is_read(tmp_path):
    path = save_tiny_adapter(tmp_path / "adapter", tiny_base())
    digest = adapter_digest(path)
    policy = with_digest(
        Policy(min_probability=0.9, max_variance=0.01, source="a test", adapter_digest=digest)
    )
    policy.save(path)
    assert read_adapter(path).policy == policy
    assert adapter_digest(path) == digest, "thresholds do not change an answer"
    predictor = predictor_on(path, tiny_base())
    assert predictor.policy == policy.served_in(predictor.precision)


def test_without_a_policy_nothing_is_accepted(tmp_path):
    path = save_tiny_adapter(tmp_path / "adapter", tiny_base())
    predictor = predictor_on(path, tiny_base())
    never = Policy.never(predictor.card.digest)
    assert predictor.policy == never.served_in(predictor.precision)


def test_a_promise_that_was_tested_in_another_precision_is_void(tmp_path):
    path = save_tiny_adapter(tmp_path / "adapter", tiny_base())
    tested = Policy(
        min_probability=0.5,
        max_variance=0.25,
        source="a test",
        target_error=0.05,
        confidence=0.95,
        precisions=("bfloat16 on cuda",),
        adapter_digest=adapter_digest(path),
    )
    with_digest(tested).save(path)
    policy = predictor_on(path, tiny_base()).policy
    assert policy.never_accepts
    assert "tested in bfloat16 on cuda, and this is float32 on cpu" in policy.source


@pytest.mark.parametrize("name", DIGESTED_FILES)
def test_the_digest_depends_on_each_of_the_three_files(tmp_path, name):
    path = save_tiny_adapter(tmp_path / "adapter", tiny_base())
    copy = shutil.copytree(path, tmp_path / "copy")
    before = adapter_digest(path)
    assert adapter_digest(copy) == before, "and on nothing outside them"
    content = bytearray((copy / name).read_bytes())
    content[-2] ^= 1
    (copy / name).write_bytes(content)
    assert adapter_digest(copy) != before


def test_the_digest_tells_where_one_file_ends(tmp_path):
    path = save_tiny_adapter(tmp_path / "adapter", tiny_base())
    before = adapter_digest(path)
    config, weights = path / CONFIG_FILE, path / WEIGHTS_FILE
    tail = config.read_bytes()[-1:]
    config.write_bytes(config.read_bytes()[:-1])
    weights.write_bytes(tail + weights.read_bytes())
    assert adapter_digest(path) != before


def test_saving_again_replaces_the_whole_directory(tmp_path):
    path = save_tiny_adapter(tmp_path / "adapter", tiny_base())
    first = adapter_digest(path)
    Policy.never(first).save(path)
    (path / "README.md").write_text("of the old weights")
    save_tiny_adapter(path, tiny_base(), scope="all_tokens")
    assert {file.name for file in path.iterdir()} == set(DIGESTED_FILES)
    assert read_adapter(path).digest != first


def test_a_failing_save_leaves_the_old_adapter_and_nothing_else(tmp_path):
    base = tiny_base()
    path = save_tiny_adapter(tmp_path / "adapter", base)
    before = adapter_digest(path)
    model = tiny_adapter(base, seed=2)

    full = patch("dalorra.adapter.directory.save_file", side_effect=OSError("no space"))
    with full, pytest.raises(OSError, match="no space"):
        save_adapter(model, tiny_manifest(base, model), path)
    assert adapter_digest(path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]


def test_the_manifest_survives_json_with_unicode(tmp_path):
    base = tiny_base()
    model = tiny_adapter(base)
    prompt = FORMAT.model_copy(update={"template": "Kritik »{sentence}« 🎬"})
    manifest = tiny_manifest(base, model, prompt=prompt)
    save_adapter(model, manifest, tmp_path / "adapter")
    assert read_adapter(tmp_path / "adapter").manifest == manifest
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
