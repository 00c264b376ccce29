"""Every damaged adapter directory is refused with its own message, and the base stays as it was."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dalorra.adapter.directory import CONFIG_FILE, WEIGHTS_FILE, load_adapter, read_adapter
from dalorra.adapter.manifest import MANIFEST_FILE
from dalorra.base.model import BaseModel
from dalorra.decision.policy import POLICY_FILE, Decision, Policy
from dalorra.decision.policy_digest import with_digest
from dalorra.errors import AdapterError
from tests.tiny import answer, predictor_on, save_tiny_adapter, tiny_base, tiny_llama

Damage = Callable[[Path], object]
UP = "base_model.model.lm_head.lora_B.weight"
LOGITS = "base_model.model.model.layers.1.self_attn.v_proj.lora_mask_logits"


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(path: Path) -> None:
        content = json.loads((path / name).read_text())
        change(content)
        (path / name).write_text(json.dumps(content))

    return damage


def manifest(**changes: Any) -> Damage:
    return edit(MANIFEST_FILE, lambda content: content.update(changes))


def config(**changes: Any) -> Damage:
    return edit(CONFIG_FILE, lambda content: content.update(changes))


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(path: Path) -> None:
        tensors = load_file(path / WEIGHTS_FILE)
        change(tensors)
        save_file(tensors, path / WEIGHTS_FILE)

    return damage


def cut(name: str, keep: float) -> Damage:
    def damage(path: Path) -> None:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: int(len(content) * keep)])

    return damage


def write(name: str, content: bytes) -> Damage:
    return lambda path: (path / name).write_bytes(content)


def remove(name: str) -> Damage:
    return lambda path: (path / name).unlink()


def spoil(name: str, value: float) -> Damage:
    return weights(lambda tensors: tensors[name].view(-1)[1].fill_(value))


UNREADABLE: dict[str, tuple[Damage, str]] = {
    "no config": (remove(CONFIG_FILE), "has no adapter_config.json: it is not a complete"),
    "no weights": (remove(WEIGHTS_FILE), "has no adapter_model.safetensors"),
    "no manifest": (remove(MANIFEST_FILE), "has no dalorra.json"),
    "truncated weights": (cut(WEIGHTS_FILE, 0.9), "safetensors is damaged or truncated"),
    "truncated header": (cut(WEIGHTS_FILE, 0.01), "safetensors is damaged or truncated"),
    "empty weights": (write(WEIGHTS_FILE, b""), "safetensors is damaged or truncated"),
    "a pickle": (write(WEIGHTS_FILE, b"\x80\x04" * 99), "safetensors is damaged or truncated"),
    "NaN": (spoil(UP, float("nan")), "lm_head.lora_B.weight holds a non-finite value"),
    "infinite logit": (spoil(LOGITS, float("inf")), "lora_mask_logits holds a non-finite value"),
    "truncated manifest": (cut(MANIFEST_FILE, 0.5), "dalorra.json is not JSON"),
    "binary manifest": (write(MANIFEST_FILE, b"\xff\xfe\x00"), "dalorra.json is not JSON"),
    "a list as manifest": (write(MANIFEST_FILE, b"[]"), "is not format version 1"),
    "format version": (manifest(format_version=2), "is not format version 1: use a newer"),
    "unknown method": (manifest(method="mystery"), "dalorra.json: unknown method 'mystery'"),
    "unknown posterior": (manifest(posterior={"rate": 0.1}), "posterior.rate: there is no such"),
    "unknown field": (manifest(temperature=0.5), "dalorra.json: temperature: there is no such"),
    "missing field": (
        edit(MANIFEST_FILE, lambda content: content.pop("scope")),
        "dalorra.json: scope: Field required",
    ),
    "unknown scope": (manifest(scope="some_tokens"), "dalorra.json: scope: Input should be"),
    "empty bank": (manifest(bank={"samples": 0}), "dalorra.json: bank.samples: Input should be"),
    "a bad template": (
        edit(MANIFEST_FILE, lambda content: content["prompt"].update(template="none")),
        "dalorra.json: prompt.template: .* needs named fields",
    ),
    "truncated config": (cut(CONFIG_FILE, 0.5), "adapter_config.json is not a PEFT LoRA config"),
    "a list as config": (write(CONFIG_FILE, b"[]"), "adapter_config.json is not a PEFT LoRA"),
    "another PEFT method": (config(peft_type="IA3"), "can serve: peft_type is .*IA3"),
    "unknown PEFT method": (config(peft_type="XYZ"), "adapter_config.json is not a PEFT LoRA"),
    "a PEFT variant": (config(use_dora=True), "can serve: use_dora is True"),
    "another scaling": (config(use_rslora=True), "can serve: use_rslora is True"),
    "more than LoRA": (config(modules_to_save=["lm_head"]), "can serve: modules_to_save is "),
    "an activated LoRA": (
        config(task_type="CAUSAL_LM", alora_invocation_tokens=[1]),
        "can serve: task_type is",
    ),
    "a policy that is none": (write(POLICY_FILE, b"{}"), r"policy .*policy\.json is not valid"),
}

UNFIT: dict[str, tuple[Damage, str]] = {
    "wrong shape": (
        weights(lambda t: t.update({UP: t[UP][:, :3].contiguous()})),
        r"lm_head\.lora_B\.weight has shape \[320, 3\], the base model and rank need \[320, 4\]",
    ),
    "missing tensor": (weights(lambda t: t.pop(LOGITS)), "v_proj.lora_mask_logits is missing"),
    "missing logits": (
        weights(lambda t: [t.pop(name) for name in list(t) if "logits" in name]),
        "lora_mask_logits is missing",
    ),
    "unknown tensor": (
        weights(lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(2)})),
        r"lm_head\.weight is not part of this adapter's configuration",
    ),
    "other rank": (config(r=8), r"has shape \[4, 32\], the base model and rank need \[8, 32\]"),
    "impossible rank": (config(r=0), "does not fit tiny-llama"),
    "other modules": (config(target_modules=["nothing"]), "does not fit tiny-llama: .*nothing"),
    "fewer modules": (config(target_modules=["q_proj"]), "dalorra.json lists other modules"),
    "modules in another order": (
        edit(MANIFEST_FILE, lambda content: content["modules"].reverse()),
        "dalorra.json lists other modules",
    ),
    "changed label token": (
        edit(MANIFEST_FILE, lambda content: content["label_tokens"].update(positive=5)),
        r"label 'positive' is token \d+ in this tokenizer, but the adapter was trained with 5",
    ),
    "missing label token": (
        edit(MANIFEST_FILE, lambda content: content["label_tokens"].pop("negative")),
        "label 'negative' is token",
    ),
    "changed cue tokens": (
        edit(MANIFEST_FILE, lambda content: content["cue_tokens"].append(3)),
        r"the answer cue is \[200, 270, 27\] in this tokenizer, but .* \[200, 270, 27, 3\]",
    ),
    "label that is no token": (
        edit(MANIFEST_FILE, lambda content: content["prompt"]["labels"].update(positive=" good")),
        r"label 'positive' is token \[\d+, .*\] in this tokenizer, but .* with \d+",
    ),
}


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


@pytest.fixture
def adapter(tmp_path, base) -> Path:
    return save_tiny_adapter(tmp_path / "adapter", base)


def fingerprint(base: BaseModel) -> dict[str, tuple[type, str]]:
    return {name: (type(m), repr(m)) for name, m in base.model.named_modules()}


def test_the_undamaged_adapter_is_accepted(adapter):
    predictor_on(adapter, tiny_base())


@pytest.mark.parametrize(("damage", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_reading_refuses(adapter, damage, message):
    damage(adapter)
    with pytest.raises(AdapterError, match=message) as refusal:
        read_adapter(adapter)
    assert str(adapter) in str(refusal.value), "the message names the folder"


@pytest.mark.parametrize(("damage", "message"), UNFIT.values(), ids=UNFIT)
def test_attaching_refuses_and_leaves_the_base_as_it_was(adapter, base, damage, message):
    before = fingerprint(base)
    damage(adapter)
    with pytest.raises(AdapterError, match=message):
        predictor_on(adapter, base)
    assert fingerprint(base) == before


POLICY = Policy(min_probability=0.5, max_variance=0.25, source="a test", temperature=2.0)


@pytest.mark.parametrize(
    ("made_for", "reason"),
    [
        ({"adapter_digest": "0" * 64}, "made for another adapter (000000000000…, this is "),
        (
            {"bank": {"samples": 9, "seed": 3, "sampler": "stratified"}},
            "made for another mask bank (samples 9, seed 3, sampler stratified; now samples 5, ",
        ),
    ],
)
def test_a_policy_made_for_something_else_is_void_and_every_answer_says_so(
    adapter, made_for, reason
):
    with_digest(POLICY.model_copy(update=made_for)).save(adapter)
    found = read_adapter(adapter)
    assert found.policy.never_accepts
    assert found.policy.adapter_digest == found.digest
    assert found.policy.temperature == 1.0, "what was fitted for other samples is not applied"
    assert reason in found.policy.source
    verdict = predictor_on(found, tiny_base()).policy.decide(answer(1.0, 0.0))
    assert verdict.decision is not Decision.ACCEPT
    assert reason in verdict.reason


def test_a_policy_made_for_this_adapter_and_bank_holds(adapter):
    found = read_adapter(adapter)
    bank = found.manifest.bank.model_dump()
    policy = with_digest(POLICY.model_copy(update={"adapter_digest": found.digest, "bank": bank}))
    policy.save(adapter)
    assert read_adapter(adapter).policy == policy


def test_a_policy_s_temperature_divides_the_label_logits(adapter):
    plain = predictor_on(adapter, tiny_base())
    with_digest(POLICY).save(adapter)
    served = predictor_on(adapter, tiny_base())
    prompts = [plain.encode("good"), plain.encode("So bad that it is fun again")]
    before, after = (p.posterior_samples(prompts).by_sample for p in (plain, served))
    softened = (before.log() / 2.0).softmax(dim=-1)
    torch.testing.assert_close(after, softened)
    assert (after - before).abs().max() > 0.01


def test_messages_tell_the_damages_apart(adapter):
    assert len({message for _, message in UNFIT.values()}) >= len(UNFIT) - 3


def test_what_is_no_directory_is_refused(tmp_path):
    file = tmp_path / "adapter.safetensors"
    file.touch()
    for path in (file, tmp_path / "nowhere"):
        with pytest.raises(AdapterError, match=re.escape(f"{path} is not a directory")):
            read_adapter(path)


def test_another_base_model_is_refused_before_anything_is_attached(adapter):
    model = tiny_llama(seed=1)
    stranger = BaseModel(model, tiny_base().tokenizer, "stranger", "f" * 64)
    before = fingerprint(stranger)
    with pytest.raises(AdapterError, match=r"trained on tiny-llama \(.*base model is stranger"):
        load_adapter(read_adapter(adapter), stranger)
    assert fingerprint(stranger) == before
