"""A tiny base model whose linear modules are in 8 bit, without a library: codes times a scale."""

from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalorra.base.model import BaseModel, load_base_model, weight_digest
from dalorra.base.quantized import stored_weights
from tests.tiny import tiny_base_model


class Int8Linear(nn.Linear):
    """A scale for each output feature; products in the precision of the input."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        weight = linear.weight.detach().float()
        self.scale = weight.abs().amax(dim=1, keepdim=True) / 127
        codes = (weight / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype))


def in_8bit(folder: Path, dtype: str = "float32") -> BaseModel:
    """The base model in a folder as `load_base_model(…, quantize="8bit")` would return it."""
    base = load_base_model(str(folder), device="cpu", dtype=dtype)
    for name, module in list(base.model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            base.model.set_submodule(name, Int8Linear(module))
    base.model.is_loaded_in_8bit = cast(Tensor, True)  # as transformers does
    digest = weight_digest(base.model, stored_weights(folder))
    return BaseModel(base.model, base.tokenizer, base.name, digest)


def tiny_in_8bit(folder: Path, **options: int) -> BaseModel:
    """The same of `tiny_llama(**options)`, written to the folder."""
    return in_8bit(tiny_base_model(folder, **options))
