import pytest
import torch

from dalorra.base.cache import is_complete
from dalorra.base.fetch import pinned_folder
from dalorra.base.model import DEFAULT_BASE_MODEL, load_base_model
from dalorra.errors import BaseModelError

pytestmark = pytest.mark.integration


def test_the_default_base_model_is_whole_and_knows_english(base_model):
    assert base_model.name == DEFAULT_BASE_MODEL
    assert is_complete(pinned_folder(DEFAULT_BASE_MODEL), hashes=True)
    assert sum(weight.numel() for weight in base_model.model.parameters()) == 134_515_008
    ids = base_model.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        best = base_model.model(ids).logits[0, -1].argmax().item()
    assert base_model.tokenizer.decode([best]) == " Paris"


def test_its_digest_is_what_adapters_name(base_model):
    digest = "eaf82a638717523fce36a556c195aabd8e430bb61c7acbed5b931102c03765a0"
    assert base_model.digest == digest
    assert load_base_model(device="cpu", dtype="bfloat16").digest == digest


def test_refuses_a_file_that_is_gguf_by_name_only(tmp_path, monkeypatch):
    monkeypatch.setenv("DALORRA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "fake.gguf").write_bytes(b"no such thing")
    with pytest.raises(BaseModelError, match=r"fake\.gguf could not be converted"):
        load_base_model(str(tmp_path / "fake.gguf"))
    assert not [path for path in (tmp_path / "cache" / "base_models").iterdir() if path.is_dir()]
