"""Base models in 8 or 4 bit, by bitsandbytes: what is loaded, and that it is the same checkpoint.

Linear modules alone are quantised, without the head; all else stays in the precision that is asked
for, and so are the products. 8 bit is LLM.int8() (Dettmers et al., 2022), 4 bit is NF4 with its
constants quantised again, as for QLoRA (Dettmers et al., 2023).
"""

import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from dalorra.errors import BaseModelError

Bits = Literal["8bit", "4bit"]
"""How linear modules are stored."""
Quantize = Literal["none", "8bit", "4bit"]
"""The same as a setting."""

_SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "8bit": {"load_in_8bit": True},
    "4bit": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
}


def loading(bits: Bits, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained`.

    Raises:
        BaseModelError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise BaseModelError(
            f"quantize {bits} needs bitsandbytes: pip install 'dalorra-service[quantized]'"
        )
    # In 8 bit it says of every product that bfloat16 is cast to float16 for it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    settings = _SETTINGS[bits] | {"bnb_4bit_compute_dtype": dtype}
    return {"quantization_config": BitsAndBytesConfig(**settings), "device_map": {"": device}}


def bits_of(model: nn.Module) -> Bits | None:
    """How a loaded model is quantised; None: it is not."""
    if getattr(model, "is_loaded_in_4bit", False):
        return "4bit"
    return "8bit" if getattr(model, "is_loaded_in_8bit", False) else None


def is_quantized(weight: Tensor) -> bool:
    """Whether its numbers are codes."""
    return not weight.is_floating_point()


def stored_weights(folder: Path) -> Callable[[str], Tensor]:
    """Reads weights of a checkpoint by their names in the model, as they were before quantisation.

    A file is mapped into memory, so that whoever looks at a part of a weight reads that part.
    """
    files = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            files.update(dict.fromkeys(file.keys(), path))

    def read(name: str) -> Tensor:
        # A checkpoint of the layers without a head has names without the model's prefix.
        found = next((n for n in (name, name.removeprefix("model.")) if n in files), None)
        if found is None:
            raise BaseModelError(f"{folder} holds no weight {name} in safetensors")
        with safe_open(files[found], framework="pt") as file:
            weight: Tensor = file.get_tensor(found)
        return weight

    return read
