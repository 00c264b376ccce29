"""Adapters as plain LoRA, which servers that know nothing of masks can run.

Plain PEFT ignores the mask logits without a word, so a sample is folded into A and B instead; for
rank masks B · diag(z) · A = (B · diag(z)) · A.

`export_mean` folds the posterior's mean, one deterministic adapter; `export_bank` writes every
sample of the bank. An `answer_tokens` adapter acts on the cue alone: its export is an activated
LoRA (`alora_invocation_tokens`), which a server must support; applied to every token it would be
another adapter (`where_it_runs`). Labels that are classes make a plain LoRA for sequence
classification, head included; there nothing runs an activated one, so that under `answer_tokens` no
export equals it.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from peft import LoraConfig
from safetensors.torch import save_file

from dalorra.adapter.directory import WEIGHTS_FILE, Adapter, read_adapter
from dalorra.errors import AdapterError, ConfigError
from dalorra.posteriors.bank import NoiseBank
from dalorra.posteriors.noise import ModuleTensors

_DOWN = ".lora_A.weight"
_UP = ".lora_B.weight"


def export_mean(adapter_dir: Path | str, out: Path) -> Path:
    """Writes one plain LoRA, the posterior's mean.

    Raises:
        AdapterError: the adapter is damaged, or `out` exists.
        ConfigError: no plain LoRA equals it.
    """
    adapter = read_adapter(adapter_dir)
    modules = _modules(adapter)
    return _write(adapter, modules, adapter.posterior.mean(list(modules.values())), (".",), out)


def export_bank(adapter_dir: Path | str, out: Path) -> Path:
    """Writes the M samples of the bank as plain LoRAs, in `out/member-00`, `out/member-01`, …

    Raises:
        AdapterError: the adapter is damaged, or `out` exists.
        ConfigError: no plain LoRA equals a sample.
    """
    adapter = read_adapter(adapter_dir)
    modules = _modules(adapter)
    bank = adapter.posterior.bank(list(modules.values()), adapter.manifest.bank)
    folders = tuple(f"member-{m:02d}" for m in range(bank.samples))
    return _write(adapter, modules, bank, folders, out)


def where_it_runs(adapter_dir: Path | str) -> str:
    """Which programs run an adapter's exports as they are meant.

    Raises:
        AdapterError: the adapter is damaged.
    """
    manifest = read_adapter(adapter_dir).manifest
    if manifest.scope == "all_tokens":
        return "it acts on every token: whatever runs a PEFT LoRA runs it"
    return (
        f"it acts from the answer cue {manifest.prompt.answer_cue!r} on, and on no token before: "
        "PEFT, and a server with activated LoRAs (alora_invocation_tokens), run it as it is meant; "
        "whoever applies it to every token, or merges it, has another model, which nobody tested. "
        "Train with scope: all_tokens for those"
    )


def _modules(adapter: Adapter) -> dict[str, ModuleTensors]:
    """PEFT's prefix of each module → its tensors, in the order of the bank's."""
    prefixes = [f"base_model.model.{name}" for name in adapter.manifest.modules]
    modules: dict[str, ModuleTensors] = {}
    for prefix in prefixes:
        start = f"{prefix}.lora_"
        own = {k[len(start) :]: t for k, t in adapter.tensors.items() if k.startswith(start)}
        down, up = own.pop("A.weight", None), own.pop("B.weight", None)
        expected = {} if down is None else adapter.posterior.tensors(down)
        if down is None or up is None or own.keys() != expected.keys():
            raise AdapterError(f"{adapter.path / WEIGHTS_FILE}: a tensor of {prefix} is missing")
        modules[prefix] = {"down": down, "up": up, **own}
    return modules


def _write(
    adapter: Adapter,
    modules: dict[str, ModuleTensors],
    bank: NoiseBank,
    folders: Sequence[str],
    out: Path,
) -> Path:
    if adapter.manifest.prompt.by_head and adapter.manifest.scope == "answer_tokens":
        raise ConfigError(
            f"no plain LoRA equals {adapter.path}: activated ones, which act on the answer cue "
            "alone, have no class head; train it with `scope: all_tokens` to export it"
        )
    if out.exists():
        raise AdapterError(f"{out} exists: name a folder that does not")
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for sample, name in enumerate(folders):
            folder = staging / name
            folder.mkdir(exist_ok=True)
            tensors = {k: t for k, t in adapter.tensors.items() if ".lora_" not in k}  # the head
            plain = bank.plain(sample, list(modules.values()))
            for prefix, (down, up) in zip(modules, plain, strict=True):
                tensors[prefix + _DOWN] = down.contiguous()
                tensors[prefix + _UP] = up.contiguous()
            save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
            _plain_config(adapter).save_pretrained(str(folder))
        staging.chmod(0o755)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out


def _plain_config(adapter: Adapter) -> LoraConfig:
    source, manifest = adapter.config, adapter.manifest
    on_cue = manifest.scope == "answer_tokens"
    return LoraConfig(
        task_type="SEQ_CLS" if manifest.prompt.by_head else "CAUSAL_LM",
        inference_mode=True,
        r=source.r,
        lora_alpha=source.lora_alpha,
        target_modules=source.target_modules,
        layers_to_transform=source.layers_to_transform,
        modules_to_save=source.modules_to_save,
        base_model_name_or_path=manifest.base_model.name,
        alora_invocation_tokens=list(manifest.cue_tokens) if on_cue else None,
    )
