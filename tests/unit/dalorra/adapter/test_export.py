"""Exports run by plain PEFT answer as the adapter they came from."""

import json
import warnings
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from dalorra.adapter.directory import CONFIG_FILE, WEIGHTS_FILE, read_adapter
from dalorra.adapter.export import export_bank, export_mean, where_it_runs
from dalorra.errors import AdapterError
from dalorra.posteriors.bank import BankSpec, MaskBank
from dalorra.prompts import Prompt
from tests.tiny import (
    EXAMPLES,
    predictor_on,
    save_tiny_adapter,
    tiny_base,
    tiny_llama,
    tiny_prompts,
)

SCOPES = ["answer_tokens", "all_tokens"]


def plain_peft(folder: Path, prompts: list[Prompt], label_ids: tuple[int, ...], **options):
    """Label probabilities `[B, K]`, by `PeftModel.from_pretrained` and nothing of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on tied heads
        model = PeftModel.from_pretrained(tiny_llama(**options), str(folder)).eval()
    rows = []
    for prompt in prompts:
        ids = torch.tensor([[*prompt.prompt_ids, *prompt.cue_ids]])
        with torch.no_grad():
            rows.append(model(input_ids=ids).logits[0, -1, list(label_ids)].softmax(-1))
    return torch.stack(rows)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "last_layers"), [({}, None), ({"tied": True}, None), ({"layers": 3}, 1)], ids=str
)
def test_both_exports_equal_their_source(tmp_path, scope, dtype, shape, last_layers):
    base, path = tiny_base(**shape), tmp_path / "adapter"
    save_tiny_adapter(path, base, scope, dtype=dtype, last_layers=last_layers)
    predictor = predictor_on(path, base)
    prompts, label_ids = tiny_prompts(base), predictor.tokenizer.label_ids
    sampled = predictor.posterior_samples(prompts).by_sample  # [B, M, K]

    export_bank(path, tmp_path / "bank")
    for m in range(predictor.samples):
        found = plain_peft(tmp_path / "bank" / f"member-{m:02d}", prompts, label_ids, **shape)
        torch.testing.assert_close(found, sampled[:, m], rtol=2e-5, atol=2e-5)
    assert sampled.std(dim=1).max() > 0.05, "the samples differ"

    export_mean(path, tmp_path / "mean")
    found = plain_peft(tmp_path / "mean", prompts, label_ids, **shape)
    answers = predictor.predict_mean(prompts)
    expected = torch.tensor([list(answer.probabilities.values()) for answer in answers])
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
    assert (expected - sampled.mean(1)).abs().max() > 0.01, "nor is the mean mask their mean"


@pytest.mark.parametrize("method", ["correlated", "spike_slab"])
def test_exports_of_other_masks_equal_their_source_too(tmp_path, method):
    base, path = tiny_base(), tmp_path / "adapter"
    save_tiny_adapter(path, base, method=method, posterior=EXAMPLES[method][1])
    predictor = predictor_on(path, base)
    prompts, label_ids = tiny_prompts(base), predictor.tokenizer.label_ids
    sampled = predictor.posterior_samples(prompts).by_sample
    export_bank(path, tmp_path / "bank")
    for m in range(predictor.samples):
        found = plain_peft(tmp_path / "bank" / f"member-{m:02d}", prompts, label_ids)
        torch.testing.assert_close(found, sampled[:, m], rtol=2e-5, atol=2e-5)
    export_mean(path, tmp_path / "mean")
    found = plain_peft(tmp_path / "mean", prompts, label_ids)
    expected = [list(a.probabilities.values()) for a in predictor.predict_mean(prompts)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=2e-5, atol=2e-5)


def test_the_bank_is_the_one_that_the_adapter_is_served_with(tmp_path):
    bank = BankSpec(samples=12, seed=9, sampler="iid")
    path = save_tiny_adapter(tmp_path / "adapter", tiny_base(), bank=bank)
    out = export_bank(path, tmp_path / "bank")
    assert sorted(folder.name for folder in out.iterdir()) == [f"member-{m:02d}" for m in range(12)]
    adapter = read_adapter(path)
    prefixes = [f"base_model.model.{name}" for name in adapter.manifest.modules]
    logits = torch.stack([adapter.tensors[f"{p}.lora_mask_logits"] for p in prefixes])
    masks = MaskBank.draw(logits, bank).masks
    for m in (0, 11):
        tensors = load_file(out / f"member-{m:02d}" / WEIGHTS_FILE)
        for prefix, mask in zip(prefixes, masks[m], strict=True):
            up = adapter.tensors[f"{prefix}.lora_B.weight"]
            assert torch.equal(tensors[f"{prefix}.lora_B.weight"], up @ torch.diag(mask))
            assert torch.equal(
                tensors[f"{prefix}.lora_A.weight"], adapter.tensors[f"{prefix}.lora_A.weight"]
            )


@pytest.mark.parametrize("scope", SCOPES)
def test_an_export_is_plain_lora_that_names_no_folder_of_this_machine(tmp_path, scope):
    path = save_tiny_adapter(tmp_path / "adapter", tiny_base(), scope)
    out = export_mean(path, tmp_path / "mean")
    assert {file.name for file in out.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE}
    assert not [name for name in load_file(out / WEIGHTS_FILE) if "mask" in name]
    config = json.loads((out / CONFIG_FILE).read_text())
    assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")
    assert config["base_model_name_or_path"] == "tiny-llama"
    cue = read_adapter(path).manifest.cue_tokens
    assert config["alora_invocation_tokens"] == (cue if scope == "answer_tokens" else None)
    assert str(tmp_path) not in (out / CONFIG_FILE).read_text()


def test_says_where_it_runs(tmp_path):
    paths = {s: save_tiny_adapter(tmp_path / s, tiny_base(), s) for s in SCOPES}
    assert where_it_runs(paths["all_tokens"]).endswith("whatever runs a PEFT LoRA runs it")
    on_cue = where_it_runs(paths["answer_tokens"])
    assert on_cue.startswith(
        r"it acts from the answer cue '\nSentiment:' on, and on no token before"
    )
    assert "whoever applies it to every token, or merges it, has another model" in on_cue


@pytest.mark.parametrize("export", [export_mean, export_bank])
def test_what_exists_is_not_overwritten_and_a_damaged_adapter_not_exported(tmp_path, export):
    path = save_tiny_adapter(tmp_path / "adapter", tiny_base())
    (tmp_path / "out").mkdir()
    with pytest.raises(AdapterError, match="out exists: name a folder that does not"):
        export(path, tmp_path / "out")
    (path / WEIGHTS_FILE).write_bytes(b"")
    with pytest.raises(AdapterError, match="damaged or truncated"):
        export(path, tmp_path / "other")
    assert {file.name for file in tmp_path.iterdir()} == {"adapter", "out"}


@pytest.mark.parametrize("export", [export_mean, export_bank])
def test_a_failing_export_leaves_nothing(tmp_path, export):
    path = save_tiny_adapter(tmp_path / "adapter", tiny_base())

    full = patch("dalorra.adapter.export.save_file", side_effect=OSError("no space"))
    with full, pytest.raises(OSError, match="no space"):
        export(path, tmp_path / "deep" / "out")
    assert not list((tmp_path / "deep").iterdir())


def test_an_adapter_whose_logits_and_modules_disagree_is_not_exported(tmp_path):
    path = save_tiny_adapter(tmp_path / "adapter", tiny_base())
    manifest = json.loads((path / "dalorra.json").read_text())
    manifest["modules"].append("model.layers.7.self_attn.q_proj")
    (path / "dalorra.json").write_text(json.dumps(manifest))
    with pytest.raises(AdapterError, match=r"layers\.7\.self_attn\.q_proj.* is missing"):
        export_mean(path, tmp_path / "out")
