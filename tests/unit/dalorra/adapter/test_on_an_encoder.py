"""Adapters on an encoder: saved, loaded, damaged and exported, with the head they bring."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from dalorra.adapter.directory import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    adapter_tensors,
    load_adapter,
    read_adapter,
    save_adapter,
)
from dalorra.adapter.export import export_bank, export_mean
from dalorra.adapter.layer import stochastic_layers
from dalorra.adapter.manifest import MANIFEST_FILE
from dalorra.errors import AdapterError
from dalorra.posteriors.bank import BankSpec
from dalorra.shared_base import SharedBase
from tests.tiny import predictor_before_saving, predictor_on, save_tiny_adapter, tiny_base
from tests.tiny_encoder import (
    FORMAT,
    KINDS,
    TEXTS,
    save_tiny_encoder_adapter,
    tiny_encoder_adapter,
    tiny_encoder_base,
    tiny_encoder_folder,
    tiny_encoder_manifest,
    tiny_texts,
)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("kind", KINDS)
def test_save_load_predict_is_bit_identical(tmp_path, kind):
    base = tiny_encoder_base(kind)
    model = tiny_encoder_adapter(base)
    manifest = tiny_encoder_manifest(base, model)
    trained, texts = predictor_before_saving(model, base, manifest), tiny_texts(base)
    before = trained.posterior_samples(texts).by_sample
    save_adapter(model, manifest, tmp_path / "adapter", "float32")
    with torch.no_grad():  # what is trained afterwards is not what the predictor holds
        stochastic_layers(model).popitem()[1].up.zero_()
    assert torch.equal(trained.posterior_samples(texts).by_sample, before)
    loaded = SharedBase(tiny_encoder_base(kind)).bind(read_adapter(tmp_path / "adapter"))
    assert torch.equal(loaded.posterior_samples(texts).by_sample, before)

    again = load_adapter(read_adapter(tmp_path / "adapter"), tiny_encoder_base(kind))
    assert not any(parameter.requires_grad for parameter in again.parameters())
    names = load_file(tmp_path / "adapter" / WEIGHTS_FILE).keys()
    assert set(adapter_tensors(again)) == names
    head = {name for name in names if ".lora_" not in name}
    modules = ("classifier",) if kind == "bert" else ("classifier", "pre_classifier")
    assert head == {
        f"base_model.model.{module}.{part}" for module in modules for part in ("weight", "bias")
    }


HEAD = "base_model.model.classifier"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda t: t.pop(f"{HEAD}.weight"), r"classifier\.weight is missing"),
        (
            lambda t: t.update({f"{HEAD}.weight": t[f"{HEAD}.weight"][:2].clone()}),
            r"classifier\.weight has shape \[2, 16\], .* need \[3, 16\]",
        ),
        (lambda t: t[f"{HEAD}.bias"].fill_(torch.inf), r"classifier\.bias holds a non-finite"),
    ],
)
def test_a_damaged_head_is_refused(tmp_path, damage, sentence):
    folder = save_tiny_encoder_adapter(tmp_path / "adapter", tiny_encoder_base())
    tensors = load_file(folder / WEIGHTS_FILE)
    damage(tensors)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=sentence):
        predictor_on(folder, tiny_encoder_base())


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        (MANIFEST_FILE, {"scope": "answer_tokens"}, "an encoder acts on all_tokens"),
        (MANIFEST_FILE, {"max_tokens": 49}, "reads at most 48"),
        (MANIFEST_FILE, {"cue_tokens": [7]}, "use the tokenizer of tiny-bert"),
        (
            MANIFEST_FILE,
            {"prompt": FORMAT.model_dump() | {"answer_cue": ":"}},
            "an adapter on an encoder has none",
        ),
        (CONFIG_FILE, {"modules_to_save": ["word_embeddings"]}, "the head of tiny-bert"),
        (CONFIG_FILE, {"use_dora": True}, "use_dora is True"),
    ],
    ids=str,
)
def test_a_directory_that_does_not_hold_together_is_refused(tmp_path, file, changes, sentence):
    folder = save_tiny_encoder_adapter(tmp_path / "adapter", tiny_encoder_base())
    edit(folder / file, **changes)
    with pytest.raises(AdapterError, match=sentence):
        predictor_on(folder, tiny_encoder_base())


def test_adapters_of_the_two_kinds_are_not_mixed_up(tmp_path):
    on_encoder = save_tiny_encoder_adapter(tmp_path / "encoder", tiny_encoder_base())
    on_llama = save_tiny_adapter(tmp_path / "llama", tiny_base())
    with pytest.raises(AdapterError, match=r"was trained on tiny-bert .* is tiny-llama"):
        predictor_on(on_encoder, tiny_base())
    with pytest.raises(AdapterError, match=r"was trained on tiny-llama .* is tiny-bert"):
        predictor_on(on_llama, tiny_encoder_base())
    reference = json.loads((on_llama / MANIFEST_FILE).read_text())["base_model"]
    edit(on_llama / MANIFEST_FILE, base_model=reference | {"kind": "encoder"})
    with pytest.raises(AdapterError, match=r"answer_cue|all_tokens"):
        read_adapter(on_llama)
    edit(on_llama / CONFIG_FILE, modules_to_save=["lm_head"])
    edit(on_llama / MANIFEST_FILE, base_model=reference)
    with pytest.raises(AdapterError, match="modules_to_save is"):
        read_adapter(on_llama)


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_answers_alike_in_plain_peft(tmp_path, kind):
    tiny = tiny_encoder_folder(tmp_path / "base", kind)
    folder = save_tiny_encoder_adapter(
        tmp_path / "adapter", tiny_encoder_base(kind), bank=BankSpec(samples=2)
    )
    predictor = predictor_on(folder, tiny_encoder_base(kind))
    (prompt,) = tiny_texts(tiny_encoder_base(kind), TEXTS[1:2])
    ids = torch.tensor([[*prompt.prompt_ids, *prompt.cue_ids]])

    def plain(path: Path) -> torch.Tensor:
        base = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=3)
        with torch.inference_mode():
            return PeftModel.from_pretrained(base, str(path)).eval()(ids).logits.softmax(-1)[0]

    (mean,) = predictor.predict_mean([prompt])
    found = plain(export_mean(folder, tmp_path / "mean"))
    torch.testing.assert_close(
        found, torch.tensor(list(mean.probabilities.values())), rtol=1e-4, atol=1e-5
    )
    out = export_bank(folder, tmp_path / "bank")
    samples = predictor.posterior_samples([prompt]).by_sample[0]
    for m in range(2):
        torch.testing.assert_close(plain(out / f"member-{m:02d}"), samples[m], rtol=1e-4, atol=1e-5)
