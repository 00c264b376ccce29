"""Which models can be a base: the Llama family, and the encoders BERT and DistilBERT.

An encoder reads a whole text and classifies it. It has no answer cue and no label tokens: a label
is a class of a small head, which every adapter brings along, trained and saved beside A and B
(PEFT's `modules_to_save`). The head that a checkpoint may have is no part of the base model.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from dalorra.errors import BaseModelError

BaseKind = Literal["llama", "encoder"]
"""Whether a base model is a language model, whose answer is a token, or an encoder."""

HEADS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"bert": ("classifier",), "distilbert": ("pre_classifier", "classifier")}
)
"""Type of an encoder → modules of its head, the last of which has a row for each class."""


def is_encoder(model: nn.Module) -> bool:
    """Whether this is a model for sequence classification, and no language model."""
    return cast(Any, model).config.model_type in HEADS


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """Modules of the head, by name; a language model has none of its own."""
    return HEADS.get(cast(Any, model).config.model_type, ())


def require_known(config: PretrainedConfig, reference: str, *, encoders: bool = True) -> None:
    """Refuse what the adapters, the forwards and the digest are not made for.

    Raises:
        BaseModelError: another architecture, or weights that are stored quantised.
    """
    if config.model_type != "llama" and not (encoders and config.model_type in HEADS):
        others = f" or an encoder ({', '.join(HEADS)})" if encoders else ""
        raise BaseModelError(
            f"the base model {reference} is of type {config.model_type!r}; "
            f"a Llama-family model (LlamaForCausalLM){others} is needed"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise BaseModelError(
            f"the base model {reference} is stored quantised; "
            "name the original in float32, float16 or bfloat16, or a GGUF file"
        )


def set_head(model: PreTrainedModel, classes: int) -> None:
    """Gives an encoder a new head, initialised as transformers does from the global generator.

    It is computed in float32, whatever the precision of the base.

    Args:
        model: an encoder without an adapter.
        classes: K.
    """
    names = head_modules(model)
    for name in names:
        old = cast(nn.Linear, model.get_submodule(name))
        features = classes if name == names[-1] else old.out_features
        head = nn.Linear(old.in_features, features, device=model.device, dtype=torch.float32)
        nn.init.normal_(head.weight, std=model.config.initializer_range)
        nn.init.zeros_(head.bias)
        head.register_forward_pre_hook(_in_float32)
        model.set_submodule(name, head.requires_grad_(False).eval())


def longest_text(model: PreTrainedModel) -> int:
    """Tokens that an encoder has positions for."""
    return int(model.config.max_position_embeddings)


def _in_float32(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.float() for x in inputs)
