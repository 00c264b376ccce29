import json
from pathlib import Path
from unittest.mock import Mock, patch

import httpx
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors.torch import load_file, save_file

from dalorra.base import model as module
from dalorra.base.families import too_long
from dalorra.base.model import choose_dtype, load_base_model, weight_digest
from dalorra.errors import BaseModelError
from dalorra.hardware import has_amx, multiplies_bfloat16
from tests.tiny import tiny_llama, tiny_tokenizer
from tests.tiny_encoder import KINDS, tiny_encoder, tiny_encoder_base, tiny_encoder_folder
from tests.tiny_families import FAMILIES, WINDOW, base_of, folder_of, tiny_of

EMBEDDING = "model.embed_tokens.weight"
FUSED = "scaled_dot_product_attention"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A complete bf16 model folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_llama().to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(checkpoint, tmp_path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_loads_a_folder_frozen_and_ready(checkpoint):
    base = load_base_model(str(checkpoint), device="cpu", dtype="float32")
    assert base.name == "tiny-llama"
    assert (base.device, base.dtype) == (torch.device("cpu"), torch.float32)
    assert not base.model.training
    assert not any(weight.requires_grad for weight in base.model.parameters())
    assert base.tokenizer("what::").input_ids == tiny_tokenizer()("what::").input_ids
    assert base.digest == weight_digest(base.model)
    with patch.object(F, FUSED, wraps=getattr(F, FUSED)) as attention:
        base.model(torch.tensor([[1, 2]]))
    assert attention.call_count == 2, "in each layer"


def test_loading_is_silent(checkpoint, capfd):
    load_base_model(str(checkpoint), device="cpu")
    assert capfd.readouterr() == ("", "")


def test_digest_does_not_depend_on_the_dtype(checkpoint):
    digests = {
        load_base_model(str(checkpoint), device="cpu", dtype=dtype).digest
        for dtype in ("float32", "bfloat16")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("name", [name for name, _ in tiny_llama().named_parameters()])
def test_digest_changes_with_the_first_value_of_every_parameter(name):
    model = tiny_llama()
    before = weight_digest(model)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] += 1
    assert weight_digest(model) != before


def test_digest_samples_at_most_1024_values_over_the_whole_parameter():
    model = tiny_llama()  # the embedding has 320 × 32 = 10240 values: every tenth is looked at
    before = weight_digest(model)
    flat = model.get_parameter(EMBEDDING).detach().view(-1)
    flat[10_229] += 1
    flat[10_231] += 1
    assert weight_digest(model) == before
    flat[10_230] += 1
    assert weight_digest(model) != before


def test_digest_tells_shapes_apart():
    first, second = torch.nn.Linear(6, 2, bias=False), torch.nn.Linear(3, 4, bias=False)
    with torch.no_grad():
        second.weight.copy_(first.weight.reshape(4, 3))
    assert weight_digest(first) != weight_digest(second)


def test_digest_counts_a_tied_head_once():
    tied, untied = tiny_llama(tied=True), tiny_llama(tied=False)
    untied.load_state_dict(tied.state_dict())
    assert torch.equal(untied.lm_head.weight, tied.lm_head.weight)
    assert weight_digest(untied) != weight_digest(tied)
    del untied.lm_head
    assert weight_digest(untied) == weight_digest(tied)


def test_digest_is_stable():
    """A fixed value: digests are stored in adapters."""
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.arange(6.0).reshape(2, 3))
        model.bias.zero_()
    known = "099d33ce0e8df7cd7764909c9b0afec8b4dffb13eba674c98afaff938429c781"
    assert weight_digest(model) == known


def test_refuses_another_architecture(copy):
    edit_config(copy, model_type="gpt2", architectures=["GPT2LMHeadModel"])
    with pytest.raises(BaseModelError, match=r"is of type 'gpt2'; what works is .*Qwen3 \(qwen3\)"):
        load_base_model(str(copy))


@pytest.mark.parametrize("family", FAMILIES)
def test_loads_a_model_of_every_family(family, tmp_path):
    base = load_base_model(str(folder_of(family, tmp_path)), device="cpu", dtype="float32")
    assert (base.kind, base.digest) == ("llama", base_of(family).digest)
    ids = torch.tensor([[1, 2, 3, *range(40)]])
    assert torch.equal(base.model(ids).logits, tiny_of(family)(ids).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "has the activation 'gelu'; what works is 'silu'"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "has rotary positions of type 'dynamic'; what works is default, linear, llama3, yarn",
        ),
    ],
)
def test_refuses_parts_that_the_family_does_not_have(copy, changes, message):
    edit_config(copy, **changes)
    with pytest.raises(BaseModelError, match=message):
        load_base_model(str(copy))


@pytest.mark.parametrize("family", [name for name in FAMILIES if "window" in name])
def test_inputs_may_fill_a_sliding_window_and_no_more(family):
    model = tiny_of(family)
    assert too_long(model, WINDOW) is None
    assert too_long(model, WINDOW + 1) == "reads at most 256 tokens (its sliding window), not 257"
    assert too_long(tiny_of(family.removesuffix(" with a window")), 10 * WINDOW) is None


def test_refuses_quantised_weights(copy):
    edit_config(copy, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(BaseModelError, match="stored quantised"):
        load_base_model(str(copy))


def test_refuses_a_truncated_weights_file(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_base_model(str(copy))


def test_refuses_a_checkpoint_that_lacks_weights(copy):
    edit_config(copy, num_hidden_layers=3)  # transformers would fill them in at random
    with pytest.raises(BaseModelError, match=r"lacks 9 weights \(model\.layers\.2"):
        load_base_model(str(copy))


def test_an_encoder_needs_no_head_and_the_digest_is_without_it(tmp_path):
    for kind in KINDS:
        base = load_base_model(str(tiny_encoder_folder(tmp_path / kind, kind)), device="cpu")
        assert (base.kind, base.name) == ("encoder", kind)
        assert base.digest == tiny_encoder_base(kind).digest
    whole = tiny_encoder("bert")
    whole.save_pretrained(tmp_path / "with-head")
    tiny_encoder_base().tokenizer.save_pretrained(tmp_path / "with-head")
    base = load_base_model(str(tmp_path / "with-head"), device="cpu")
    assert base.digest == tiny_encoder_base().digest


def test_an_encoder_that_lacks_other_weights_is_refused(tmp_path):
    folder = tiny_encoder_folder(tmp_path / "bert")
    tensors = load_file(folder / "model.safetensors")
    del tensors["bert.pooler.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"lacks 1 weights \(bert\.pooler\.dense\.weight"):
        load_base_model(str(folder), device="cpu")


def test_refuses_pickled_weights(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_base_model(str(copy))


def test_refuses_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(BaseModelError, match=r"no base model; give a folder with config\.json"):
        load_base_model(str(tmp_path))


@pytest.mark.parametrize(
    "reference",
    ["/no/such/folder", "./missing", "no-such-name", "missing.gguf", "a/b/c", "a/b.gguf"],
)
def test_names_what_a_reference_can_be(reference):
    with pytest.raises(BaseModelError, match=r"there is no base model .*hub id \(owner/name\)"):
        load_base_model(reference)


def hub_answer(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://hub.example"))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (LocalEntryNotFoundError("no"), "the model hub cannot be reached"),
        (RepositoryNotFoundError("no", response=hub_answer(401)), "the hub has no model o/m, or"),
        (GatedRepoError("no", response=hub_answer(403)), "licence accepted.*HF_TOKEN"),
        (EntryNotFoundError("config.json is absent"), "config.json is absent"),
    ],
)
def test_says_why_a_hub_model_cannot_be_had(monkeypatch, error, sentence):
    monkeypatch.setattr(module, "hf_hub_download", Mock(side_effect=error))
    with pytest.raises(BaseModelError, match=sentence):
        load_base_model("o/m")


def test_a_hub_model_is_checked_before_its_weights_are_downloaded(monkeypatch, copy):
    edit_config(copy, model_type="gpt2")

    monkeypatch.setattr(module, "hf_hub_download", lambda *_: str(copy / "config.json"))
    monkeypatch.setattr(module, "snapshot_download", Mock(side_effect=AssertionError("too early")))
    with pytest.raises(BaseModelError, match="the base model o/m is of type 'gpt2'"):
        load_base_model("o/m")


def test_loads_a_hub_model_under_its_id(monkeypatch, checkpoint):
    monkeypatch.setattr(module, "hf_hub_download", lambda *_: str(checkpoint / "config.json"))
    monkeypatch.setattr(module, "snapshot_download", lambda *_, **__: str(checkpoint))
    base = load_base_model("owner/tiny", device="cpu")
    assert base.name == "owner/tiny"


def test_refuses_an_unknown_device_and_dtype(checkpoint):
    with pytest.raises(BaseModelError, match="no device 'abacus'"):
        load_base_model(str(checkpoint), device="abacus")
    with pytest.raises(BaseModelError, match="use auto, float32 or bfloat16"):
        load_base_model(str(checkpoint), dtype="int4")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_refuses_cuda_where_there_is_none(checkpoint):
    with pytest.raises(BaseModelError, match="no device 'cuda'"):
        load_base_model(str(checkpoint), device="cuda")


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("fpu avx2 avx512f avx512_bf16 amx_tile", True),
        ("fpu amx_bf16 amx_tile", True),
        ("fpu avx2 avx512f avx512_vnni", False),
        ("fpu not_avx512_bf16 avx512_bf16x", False),
    ],
)
def test_bfloat16_is_used_where_the_cpu_multiplies_it(tmp_path, monkeypatch, flags, fast):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: X\nflags\t\t: {flags}\nbugs\t\t: none\n")
    assert multiplies_bfloat16(cpuinfo) is fast
    assert has_amx(cpuinfo) is ("amx_bf16" in flags)
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda: fast)
    chosen = choose_dtype("auto", torch.device("cpu"))
    assert chosen is (torch.bfloat16 if fast else torch.float32)


def test_a_cpu_that_says_nothing_gets_float32(tmp_path):
    assert not multiplies_bfloat16(tmp_path / "absent")
    (tmp_path / "arm").write_text("processor : 0\nFeatures : fp asimd bf16\n")
    assert not multiplies_bfloat16(tmp_path / "arm")
