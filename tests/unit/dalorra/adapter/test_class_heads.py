"""Adapters with a class head on a language model: saved, loaded, damaged and exported."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForSequenceClassification

from dalorra.adapter.directory import CONFIG_FILE, WEIGHTS_FILE, load_adapter, read_adapter
from dalorra.adapter.export import export_bank, export_mean
from dalorra.adapter.manifest import MANIFEST_FILE
from dalorra.errors import AdapterError, ConfigError
from dalorra.posteriors.bank import BankSpec
from dalorra.shared_base import SharedBase
from tests.tiny import (
    FORMAT,
    predictor_before_saving,
    predictor_on,
    save_tiny_adapter,
    tiny_adapter,
    tiny_base,
    tiny_base_model,
    tiny_manifest,
    tiny_prompts,
)

LABELS = {name: f" {name}" for name in ("negative", "neither of the two", "positive")}
BY_HEAD = FORMAT.model_copy(update={"labels": LABELS, "labels_by": "head"})
HEAD = "base_model.model.score.weight"


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_tiny_adapter(tmp_path / "adapter", tiny_base(), prompt=BY_HEAD)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_it_answers_as_before_it_was_saved(folder):
    base = tiny_base()
    model = tiny_adapter(base, classes=3)
    manifest = tiny_manifest(base, model, prompt=BY_HEAD)
    assert manifest.label_tokens == {"negative": 0, "neither of the two": 1, "positive": 2}
    prompts = tiny_prompts(base, prompt=BY_HEAD)
    before = predictor_before_saving(model, base, manifest).posterior_samples(prompts).by_sample
    shared = SharedBase(tiny_base())
    loaded = shared.bind(shared.read(folder))
    assert torch.equal(loaded.posterior_samples(prompts).by_sample, before)
    assert loaded.labels == tuple(LABELS)
    tensors = load_file(folder / WEIGHTS_FILE)
    assert tensors[HEAD].dtype == torch.float32
    assert not any("lm_head" in name for name in tensors)


def test_its_head_is_part_of_the_digest(folder):
    before = read_adapter(folder).digest
    tensors = load_file(folder / WEIGHTS_FILE)
    tensors[HEAD][0, 0] += 1.0
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    assert read_adapter(folder).digest != before


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda t: t.pop(HEAD), r"score\.weight is missing"),
        (
            lambda t: t.update({HEAD: t[HEAD][:2].clone()}),
            r"score\.weight has shape \[2, 32\], .* need \[3, 32\]",
        ),
        (lambda t: t[HEAD].fill_(torch.nan), r"score\.weight holds a non-finite"),
    ],
)
def test_a_damaged_head_is_refused_and_the_base_stays_as_it_was(
    folder, damage: Callable[[dict[str, Tensor]], object], sentence
):
    tensors = load_file(folder / WEIGHTS_FILE)
    damage(tensors)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    base = tiny_base()
    with pytest.raises(AdapterError, match=sentence):
        load_adapter(read_adapter(folder), base)
    assert not hasattr(base.model, "score")


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        (
            MANIFEST_FILE,
            {"prompt": BY_HEAD.model_dump() | {"labels_by": "auto"}},
            "modules_to_save",
        ),
        (MANIFEST_FILE, {"label_tokens": {"negative": 2}}, "'negative' is token 0"),
        (CONFIG_FILE, {"modules_to_save": None}, "must be the head of tiny-llama, score"),
        (CONFIG_FILE, {"modules_to_save": ["lm_head"]}, "must be the head of tiny-llama, score"),
        (CONFIG_FILE, {"target_modules": ["q_proj", "lm_head"]}, "in the place of 'lm_head'"),
    ],
    ids=str,
)
def test_a_directory_that_does_not_hold_together_is_refused(folder, file, changes, sentence):
    edit(folder / file, **changes)
    base = tiny_base()
    with pytest.raises(AdapterError, match=sentence):
        predictor_on(folder, base)
    assert not hasattr(base.model, "score")


def test_an_export_is_a_classifier_that_answers_alike(tmp_path):
    base = tiny_base()
    folder = save_tiny_adapter(
        tmp_path / "adapter", base, "all_tokens", prompt=BY_HEAD, bank=BankSpec(samples=2)
    )
    predictor = predictor_on(folder, base)
    prompts = tiny_prompts(base, prompt=BY_HEAD)
    on_disk = tiny_base_model(tmp_path / "base")

    def plain(path: Path) -> Tensor:
        classifier = LlamaForSequenceClassification.from_pretrained(
            on_disk, num_labels=3, pad_token_id=1
        )
        model = PeftModel.from_pretrained(classifier, str(path)).eval()
        ids = [torch.tensor([[*prompt.prompt_ids, *prompt.cue_ids]]) for prompt in prompts]
        with torch.inference_mode():
            return torch.cat([model(input_ids=row).logits for row in ids]).softmax(-1)

    means = [list(p.probabilities.values()) for p in predictor.predict_mean(prompts)]
    found = plain(export_mean(folder, tmp_path / "mean"))
    torch.testing.assert_close(found, torch.tensor(means), rtol=1e-4, atol=1e-5)
    out = export_bank(folder, tmp_path / "bank")
    samples = predictor.posterior_samples(prompts).by_sample
    for m in range(2):
        found = plain(out / f"member-{m:02d}")
        torch.testing.assert_close(found, samples[:, m], rtol=1e-4, atol=1e-5)
    config = json.loads((tmp_path / "mean" / CONFIG_FILE).read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])


def test_no_plain_lora_equals_one_that_acts_on_the_cue(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"no plain LoRA equals .* `scope: all_tokens`"):
        export_mean(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
