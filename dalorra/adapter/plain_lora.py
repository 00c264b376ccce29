"""Plain LoRAs as PEFT writes them: read, and brought into the one form that adapters have here.

What makes a difference to an answer is carried over exactly (another rank or scale in some modules,
the rank-stabilised scale α/√r, an activated LoRA) or refused by its name; what only says how the
LoRA was trained is left out.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dalorra.adapter.directory import CONFIG_FILE, WEIGHTS_FILE
from dalorra.adapter.hub import located
from dalorra.adapter.layer import LowRankUpdate, Updates
from dalorra.adapter.manifest import MANIFEST_FILE
from dalorra.errors import AdapterError, first_fault

_PREFIX: Final = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_BASE_COPY: Final = re.compile(r"(?:\.base_layer)?\.weight$")
_PICKLES: Final = ("adapter_model.bin", "adapter_model.pt")

_OF_THE_TRAINING: Final = frozenset(
    (
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("auto_mapping", "peft_version", "inference_mode", "lora_dropout", "fan_in_fan_out"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config"),
        *("megatron_core", "qalora_group_size", "ensure_weight_tying"),
    )
)
"""Settings that change no answer of a trained LoRA on linear modules: its tensors say which."""

_KEEPS_THE_BASE: Final = (True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base model's own weights as they are."""


class _Settings(BaseModel):
    """The part of `adapter_config.json` that an answer depends on; the rest is `model_extra`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    peft_type: str
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    r: int = Field(default=8, ge=1)
    lora_alpha: float = 8.0
    use_rslora: bool = False
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    init_lora_weights: bool | str = True
    alora_invocation_tokens: tuple[int, ...] | None = None

    def scale(self, module: str, rank: int) -> float:
        """What multiplies B·A in a module, whose A has `rank` rows."""
        pattern = get_pattern_key([*self.alpha_pattern], module)
        alpha = self.alpha_pattern.get(pattern, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def rank(self, module: str) -> int:
        """Rows of a module's A."""
        return self.rank_pattern.get(get_pattern_key([*self.rank_pattern], module), self.r)


@dataclass(frozen=True, slots=True, eq=False)
class PlainLora:
    """A LoRA of a causal language model.

    Attributes:
        path: its folder.
        base_model: what it calls its base model; None: nothing.
        revision: of the base model, where it is not the main one.
        updates: of every adapted module.
        invoked_by: token ids from whose last occurrence on it acts; None: it acts on every token.
        base_weights: copies of the base model's weights that were saved with it, by module.
        dtype: of its tensors; float32 where they have several.
    """

    path: Path
    base_model: str | None
    revision: str | None
    updates: Updates
    invoked_by: tuple[int, ...] | None
    base_weights: Mapping[str, Tensor]
    dtype: torch.dtype


def read_plain_loras(reference: Path | str) -> list[PlainLora]:
    """The plain LoRA in a folder or on the hub, or all that lie side by side in a folder.

    Raises:
        AdapterError: there is none, one is damaged, or has something that cannot be carried over;
            the message names it.
    """
    path = located(reference)
    if (path / MANIFEST_FILE).exists():
        raise AdapterError(f"{path} is a complete adapter already: serve or calibrate it")
    folders = sorted(config.parent for config in path.glob(f"*/{CONFIG_FILE}"))
    if (path / CONFIG_FILE).is_file() or not folders:
        return [_read(path)]
    return [_read(folder) for folder in folders]


def side_by_side(members: Sequence[Updates]) -> Updates:
    """Several LoRAs as one, in which each is a block of components.

    All blocks get the largest rank, the others filled up with zeros, and one scale, any other being
    multiplied into B: so the updates have one rank and scale, and stay what they are.

    Args:
        members: E of them, on the same base model.

    Returns:
        Updates with A `[E·r, d_in]` and B `[d_out, E·r]`.

    Raises:
        AdapterError: a module has several widths.
    """
    every = [update for member in members for update in member.values()]
    rank = max(len(update.down) for update in every)
    scale = max((update.scale for update in every), key=abs)
    joined = {}
    for name in dict.fromkeys(name for member in members for name in member):
        own = [member.get(name) for member in members]
        like = next(update for update in own if update)
        absent = LowRankUpdate(like.down[:0], like.up[:, :0], scale)
        blocks = [_filled(update or absent, rank, scale) for update in own]
        if len({(down.shape[1], len(up)) for down, up in blocks}) > 1:
            raise AdapterError(f"{name} has other widths in some of the LoRAs: use one base model")
        down, up = zip(*blocks, strict=True)
        joined[name] = LowRankUpdate(torch.cat(down), torch.cat(up, dim=1), scale)
    return joined


def _filled(update: LowRankUpdate, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """A and B of this rank and scale, float32."""
    down, up = update.down.float(), update.up.float()
    if update.scale != scale:
        up = up * (update.scale / scale)
    missing = rank - len(down)
    return (
        torch.cat([down, down.new_zeros(missing, down.shape[1])]),
        torch.cat([up, up.new_zeros(up.shape[0], missing)], dim=1),
    )


def _read(path: Path) -> PlainLora:
    if not (path / CONFIG_FILE).is_file():
        raise AdapterError(f"{path} has no {CONFIG_FILE}: name the folder of a PEFT LoRA")
    settings = _settings(path / CONFIG_FILE)
    if not (path / WEIGHTS_FILE).is_file():
        pickles = [name for name in _PICKLES if (path / name).exists()]
        why = f"; {pickles[0]} can run code and is not read: save it as safetensors"
        raise AdapterError(f"{path} has no {WEIGHTS_FILE}{why if pickles else ''}")
    try:
        tensors = load_file(path / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path / WEIGHTS_FILE} is damaged or truncated ({error})") from error
    updates, base_weights = _sorted(path, settings, tensors)
    dtypes = {t.dtype for u in updates.values() for t in (u.down, u.up)}
    return PlainLora(
        path,
        settings.base_model_name_or_path,
        None if settings.revision == "main" else settings.revision,
        updates,
        settings.alora_invocation_tokens,
        base_weights,
        dtypes.pop() if len(dtypes) == 1 else torch.float32,
    )


def _settings(path: Path) -> _Settings:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings = _Settings.model_validate(content)
    except ValidationError as error:
        raise AdapterError(f"{path}: {first_fault(error)}") from error
    except (ValueError, OSError) as error:
        raise AdapterError(f"{path} is not JSON: {error}") from error
    if settings.peft_type != "LORA":
        raise AdapterError(f"{path}: peft_type {settings.peft_type} cannot be imported: LORA can")
    if settings.task_type not in (None, "CAUSAL_LM"):
        raise AdapterError(
            f"{path}: task_type {settings.task_type} cannot be imported: CAUSAL_LM can"
        )
    if settings.init_lora_weights not in _KEEPS_THE_BASE:
        raise AdapterError(
            f"{path}: init_lora_weights {settings.init_lora_weights!r} changes the base model's "
            "own weights: convert it to a plain LoRA (in PEFT, save_pretrained with "
            "path_initial_model_for_weight_conversion)"
        )
    usual = LoraConfig().to_dict()
    for name, value in (settings.model_extra or {}).items():
        if name not in _OF_THE_TRAINING and value and value != usual.get(name):
            raise AdapterError(f"{path}: {name} ({_shown(value)}) cannot be imported")
    return settings


def _sorted(
    path: Path, settings: _Settings, tensors: Mapping[str, Tensor]
) -> tuple[Updates, dict[str, Tensor]]:
    """A and B by module, and what else there is that may be the base model's own."""
    downs, ups, rest = {}, {}, {}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{path / WEIGHTS_FILE}: {name} holds a non-finite value")
        module = name.removeprefix(_PREFIX)
        if name.endswith(_DOWN):
            downs[module.removesuffix(_DOWN)] = tensor
        elif name.endswith(_UP):
            ups[module.removesuffix(_UP)] = tensor
        elif _BASE_COPY.search(name) and ".lora_" not in name:
            rest[_BASE_COPY.sub("", module)] = tensor
        else:
            raise AdapterError(f"{path / WEIGHTS_FILE}: {name} is no A or B of a plain LoRA")
    if unpaired := sorted(downs.keys() ^ ups.keys()):
        raise AdapterError(f"{path / WEIGHTS_FILE}: {unpaired[0]} lacks its A or its B")
    if not downs:
        raise AdapterError(f"{path / WEIGHTS_FILE} holds no LoRA")
    return {m: _update(path, settings, m, down, ups[m]) for m, down in downs.items()}, rest


def _update(
    path: Path, settings: _Settings, module: str, down: Tensor, up: Tensor
) -> LowRankUpdate:
    try:
        rank, scale = settings.rank(module), settings.scale(module, len(down))
    except re.error as error:
        raise AdapterError(f"{path / CONFIG_FILE}: a pattern cannot be read: {error}") from error
    if down.dim() != 2 or up.dim() != 2 or not len(down) == up.shape[1] == rank:
        raise AdapterError(
            f"{path / WEIGHTS_FILE}: A {list(down.shape)} and B {list(up.shape)} of {module} are "
            f"not of rank {rank}, which {CONFIG_FILE} says"
        )
    return LowRankUpdate(down, up, scale)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"
