"""The frozen base model: found, loaded, checked, and identified by its weights.

A language model or an encoder; `dalorra.base.families` lists what works.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from dalorra.base.cache import is_complete
from dalorra.base.families import HEADS, BaseKind, head_modules, is_encoder, require_known
from dalorra.base.fetch import DEFAULT_BASE_MODEL, PINNED, fetch, from_gguf, pinned_folder
from dalorra.base.quantized import (
    Bits,
    Quantize,
    bits_of,
    is_quantized,
    loading,
    stored_weights,
)
from dalorra.errors import BaseModelError
from dalorra.hardware import multiplies_bfloat16
from dalorra.hub import HubReference, in_words

__all__ = ["DEFAULT_BASE_MODEL", "BaseModel", "fetch", "load_base_model", "weight_digest"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SAMPLED_PER_TENSOR = 1024
# Weights as safetensors only: nothing that is downloaded can execute.
_HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model")
_HUB_FILES_UNUSED = ("original/*", "consolidated*", "onnx/*")
# Models from before the hub had owners are still best known by their old names.
_OLD_NAMES = {
    name: f"{owner}/{name}"
    for owner, name in (
        ("distilbert", "distilbert-base-uncased"),
        ("google-bert", "bert-base-uncased"),
    )
}


@dataclass(frozen=True)
class BaseModel:
    """A loaded base model: frozen, in evaluation mode.

    Attributes:
        model: the unmodified transformers model.
        tokenizer: its tokenizer.
        name: the pinned model's name, the hub id, or the name of the folder or file.
        digest: `weight_digest` of the model, without an encoder's head.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    digest: str

    @property
    def kind(self) -> BaseKind:
        """Language model or encoder."""
        return "encoder" if is_encoder(self.model) else "llama"

    @property
    def bits(self) -> Bits | None:
        """How its linear modules are quantised; None: they are not."""
        return bits_of(self.model)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are stored in."""
        return self.model.dtype


def load_base_model(
    reference: str = DEFAULT_BASE_MODEL,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: Quantize = "none",
) -> BaseModel:
    """Load a base model for use under adapters.

    Args:
        reference: name of a pinned model (fetched when missing), a local folder, a `.gguf` file
            (converted the first time), or a hub id such as `Qwen/Qwen3-8B` or
            `distilbert/distilbert-base-uncased` (`HF_TOKEN` is respected).
        device: `"auto"` (CUDA when there is one), or any torch device.
        dtype: `"auto"`, `"float32"` or `"bfloat16"`; auto is bfloat16 where the hardware
            multiplies it, float32 elsewhere.
        quantize: `"8bit"` or `"4bit"` keeps the linear modules of a language model in that.

    Raises:
        BaseModelError: it cannot be found, fetched or read, or is of another family.
    """
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    folder, name = _locate(reference)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        require_known(config, reference, encoders=quantize == "none")
        how: dict[str, Any] = {"dtype": chosen_dtype}
        if quantize != "none":
            how |= loading(quantize, chosen_dtype, chosen_device)
        with _quiet_transformers():
            model = _load(folder, config, reference, how)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if quantize == "none":
            model.to(chosen_device)  # type: ignore[arg-type]
        model.eval().requires_grad_(False)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise BaseModelError(f"the base model {reference} cannot be loaded: {reason}") from error
    weights = model.base_model if is_encoder(model) else model
    return BaseModel(model, tokenizer, name, weight_digest(weights, stored_weights(folder)))


def choose_device(device: str) -> torch.device:
    """The torch device of a setting.

    Raises:
        BaseModelError: there is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BaseModelError(
            f"there is no device {device!r} here; use auto, cpu or cuda"
        ) from error
    return torch.device(device)


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The torch dtype of a setting.

    Raises:
        BaseModelError: it is none of auto, float32 and bfloat16.
    """
    if dtype == "auto":
        on_cuda = device.type == "cuda"
        fast = torch.cuda.is_bf16_supported() if on_cuda else multiplies_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    if dtype not in _DTYPES:
        raise BaseModelError(f"dtype {dtype!r} is unknown; use auto, float32 or bfloat16")
    return _DTYPES[dtype]


def weight_digest(model: nn.Module, stored: Callable[[str], Tensor] | None = None) -> str:
    """A digest of a model's weights that does not depend on the precision they were loaded in.

    sha256 over the names, the shapes and up to 1024 evenly strided values of each parameter,
    rounded to bfloat16. A tied head is one parameter and counts once. It says which checkpoint
    this is; it is no proof that every single weight is untouched. Call it before an adapter is
    injected.

    Args:
        model: as it was loaded.
        stored: reads a weight that was quantised on the way from its checkpoint.
    """
    digest = hashlib.sha256()
    for name, loaded in sorted(model.named_parameters()):
        weight = stored(name) if stored and is_quantized(loaded) else loaded
        flat = weight.detach().reshape(-1)
        stride = max(1, -(-flat.numel() // _SAMPLED_PER_TENSOR))
        sampled = flat[::stride].to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(sampled.numpy().astype("<i2").tobytes())
    return digest.hexdigest()


def _load(
    folder: Path, config: PretrainedConfig, reference: str, how: dict[str, Any]
) -> PreTrainedModel:
    encoder = config.model_type in HEADS
    model_class: Any = AutoModelForSequenceClassification if encoder else AutoModelForCausalLM
    found: Any = model_class.from_pretrained(
        folder,
        config=config,
        attn_implementation="sdpa",
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **how,
    )
    model, loaded = found
    # An adapter brings its own head; anything else would be filled in at random.
    own = tuple(f"{name}." for name in head_modules(model))
    if missing := sorted(key for key in loaded["missing_keys"] if not key.startswith(own)):
        raise BaseModelError(
            f"the base model {reference} lacks {len(missing)} weights ({missing[0]} first); "
            "copy or download it again"
        )
    return cast(PreTrainedModel, model)


def _locate(reference: str) -> tuple[Path, str]:
    """The local folder that holds the model a reference means, and the model's name."""
    if reference in PINNED:
        folder = pinned_folder(reference)
        return (folder if is_complete(folder) else fetch(name=reference)), reference
    path = Path(reference).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return from_gguf(path), path.stem
    if (path / "config.json").is_file():
        return path, path.resolve().name
    if path.exists():
        raise BaseModelError(
            f"{reference} is no base model; "
            "give a folder with config.json and safetensors, or a .gguf file"
        )
    reference = _OLD_NAMES.get(reference, reference)
    if path.suffix == ".gguf" or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", reference):
        raise BaseModelError(
            f"there is no base model {reference!r}; give {' or '.join(PINNED)}, "
            "a folder, a .gguf file, or a hub id (owner/name)"
        )
    return _from_hub(reference), reference


def _from_hub(hub_id: str) -> Path:
    """Download a hub model's files, after a look at its configuration alone."""
    with in_words(HubReference(hub_id), "model", BaseModelError):
        config = hf_hub_download(hub_id, "config.json")
        require_known(AutoConfig.from_pretrained(config, local_files_only=True), hub_id)
        return Path(
            snapshot_download(
                hub_id, allow_patterns=[*_HUB_FILES], ignore_patterns=[*_HUB_FILES_UNUSED]
            )
        )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars and notes, which would break up the server's log."""
    bars, verbosity = (
        transformers_logging.is_progress_bar_enabled(),
        transformers_logging.get_verbosity(),
    )
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
