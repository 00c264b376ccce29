"""Adapters as plain LoRA, which servers that know nothing of masks can run.

Plain PEFT ignores the mask logits without a word, so a mask is folded into B instead:

    B · diag(z) · A = (B · diag(z)) · A

`export_mean` folds the posterior mean σ(φ), one deterministic adapter; `export_bank` writes every
member of the bank. An `answer_tokens` adapter acts on the cue alone: its export is an activated
LoRA (`alora_invocation_tokens`), which a server must support; applied to every token it would be
another adapter.
"""

import shutil
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from dalorra.adapter import WEIGHTS_FILE, Adapter, read_adapter
from dalorra.bank import MaskBank
from dalorra.errors import AdapterError

_LOGITS = ".lora_mask_logits"
_UP = ".lora_B.weight"


def export_mean(adapter_dir: Path, out: Path) -> Path:
    """Writes one plain LoRA with the mean mask folded into B.

    Raises:
        AdapterError: the adapter is damaged, or `out` exists.
    """
    adapter = read_adapter(adapter_dir)
    logits = _logits(adapter)
    masks = MaskBank.mean(torch.stack(list(logits.values()))).masks
    return _write(adapter, logits, {".": masks[0]}, out)


def export_bank(adapter_dir: Path, out: Path) -> Path:
    """Writes the M members of the bank as plain LoRAs, in `out/member-00`, `out/member-01`, …

    Raises:
        AdapterError: the adapter is damaged, or `out` exists.
    """
    adapter = read_adapter(adapter_dir)
    logits = _logits(adapter)
    bank = MaskBank.draw(torch.stack(list(logits.values())), adapter.manifest.bank)
    members = {f"member-{m:02d}": mask for m, mask in enumerate(bank.masks)}
    return _write(adapter, logits, members, out)


def _logits(adapter: Adapter) -> dict[str, Tensor]:
    """PEFT's prefix of each module → φ, in the order of the bank's masks."""
    prefixes = [f"base_model.model.{name}" for name in adapter.manifest.modules]
    try:
        return {prefix: adapter.tensors[prefix + _LOGITS] for prefix in prefixes}
    except KeyError as error:
        raise AdapterError(f"{adapter.path / WEIGHTS_FILE}: {error} is missing") from error


def _write(
    adapter: Adapter, logits: dict[str, Tensor], members: dict[str, Tensor], out: Path
) -> Path:
    if out.exists():
        raise AdapterError(f"{out} exists: name a folder that does not")
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for name, masks in members.items():
            folder = staging / name
            folder.mkdir(exist_ok=True)
            tensors = {
                key: tensor.float().contiguous()
                for key, tensor in adapter.tensors.items()
                if not key.endswith(_LOGITS)
            }
            for prefix, mask in zip(logits, masks, strict=True):
                tensors[prefix + _UP] = (tensors[prefix + _UP] * mask.float()).contiguous()
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
        task_type="CAUSAL_LM",
        inference_mode=True,
        r=source.r,
        lora_alpha=source.lora_alpha,
        target_modules=source.target_modules,
        layers_to_transform=source.layers_to_transform,
        base_model_name_or_path=manifest.base_model.name,
        alora_invocation_tokens=list(manifest.cue_tokens) if on_cue else None,
    )
