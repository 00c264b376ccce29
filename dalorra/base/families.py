"""Which models can be a base: Llama and its relatives, and the encoders BERT and DistilBERT.

`LANGUAGE_MODELS` says what a family differs in. What its modules tell by themselves (biases, the
size of a head, scaled rotary positions) `forward.llama.base` reads off them: it needs no entry.

An encoder reads a whole text and classifies it. It has no answer cue and no label tokens: a label
is a class of a small head, which every adapter brings along, trained and saved beside A and B
(PEFT's `modules_to_save`). The head that a checkpoint may have is no part of the base model. A
language model under an adapter with a class head has one likewise, in place of its `lm_head`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, cast

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from dalorra.errors import BaseModelError

BaseKind = Literal["llama", "encoder"]
"""Whether a base model is a language model, whose answer is a token, or an encoder."""


@dataclass(frozen=True, slots=True)
class Family:
    """A family of language models with Llama's layers.

    Attributes:
        members: for messages.
        head_norms: query and key are normed, each head for itself, before they are rotated.
        window: some of them attend to the latest tokens alone (`sliding_window`).
    """

    members: str
    head_norms: bool = False
    window: bool = False


LANGUAGE_MODELS: Final[Mapping[str, Family]] = MappingProxyType(
    {
        "llama": Family("Llama 2 to 3.3, SmolLM2"),
        "mistral": Family("Mistral", window=True),
        "qwen2": Family("Qwen2, Qwen2.5", window=True),
        "qwen3": Family("Qwen3", head_norms=True, window=True),
    }
)
"""`model_type` in `config.json` → family."""

HEADS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"bert": ("classifier",), "distilbert": ("pre_classifier", "classifier")}
)
"""Type of an encoder → modules of its head, the last of which has a row for each class."""

CLASS_HEAD: Final = "score"
"""A language model's class head, by the name that transformers' own classifiers give it."""

_ROPE: Final = ("default", "linear", "llama3", "yarn")
"""Rotary positions that do not depend on how long the other inputs of a forward are."""


def is_encoder(model: nn.Module) -> bool:
    """Whether this is a model for sequence classification, and no language model."""
    return cast(Any, model).config.model_type in HEADS


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """Modules of the head that an adapter may bring, by name."""
    return HEADS.get(cast(Any, model).config.model_type, (CLASS_HEAD,))


def family_of(model: nn.Module) -> Family:
    """The family of a language model."""
    return LANGUAGE_MODELS[cast(Any, model).config.model_type]


def head_width(model: nn.Module) -> int:
    """Numbers of one head of a language model's attention, which its configuration may not say."""
    return int(cast(Any, model).model.layers[0].self_attn.head_dim)


def require_known(config: PretrainedConfig, reference: str, *, encoders: bool = True) -> None:
    """Refuse what the adapters, the forwards and the digest are not made for.

    Raises:
        BaseModelError: another architecture, or weights that are stored quantised.
    """
    found = config.model_type
    if found in LANGUAGE_MODELS:
        if problem := _foreign_part(config):
            raise BaseModelError(f"the base model {reference} has {problem}")
    elif not (encoders and found in HEADS):
        known = [f"{family.members} ({name})" for name, family in LANGUAGE_MODELS.items()]
        others = f", or an encoder ({', '.join(HEADS)})" if encoders else ""
        raise BaseModelError(
            f"the base model {reference} is of type {found!r}; what works is a language model of "
            f"{'; '.join(known)}{others}"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise BaseModelError(
            f"the base model {reference} is stored quantised; "
            "name the original in float32, float16 or bfloat16, or a GGUF file"
        )


def _foreign_part(config: Any) -> str | None:
    """What a language model of a known type has that its family has not."""
    if config.hidden_act != "silu":
        return f"the activation {config.hidden_act!r}; what works is 'silu'"
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    if rope not in _ROPE:
        return f"rotary positions of type {rope!r}; what works is {', '.join(_ROPE)}"
    return None


def set_head(model: PreTrainedModel, classes: int) -> None:
    """Gives a model a new head, initialised as transformers does from the global generator.

    It is computed in float32, whatever the precision of the base.

    Args:
        model: without an adapter.
        classes: K.
    """
    if not is_encoder(model):
        head = nn.Linear(model.config.hidden_size, classes, bias=False, device=model.device)
        model.add_module(CLASS_HEAD, _initialised(head, model))
        return
    names = head_modules(model)
    for name in names:
        old = cast(nn.Linear, model.get_submodule(name))
        features = classes if name == names[-1] else old.out_features
        head = nn.Linear(old.in_features, features, device=model.device)
        model.set_submodule(name, _initialised(head, model))


def drop_class_head(model: PreTrainedModel) -> None:
    """Takes the class head off a language model that has one."""
    if hasattr(model, CLASS_HEAD):
        delattr(model, CLASS_HEAD)


def _initialised(head: nn.Linear, model: PreTrainedModel) -> nn.Linear:
    nn.init.normal_(head.weight, std=model.config.initializer_range)
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    head.register_forward_pre_hook(_in_float32)
    return head.float().requires_grad_(False).eval()


def too_long(model: PreTrainedModel, tokens: int) -> str | None:
    """Why inputs of up to this many tokens cannot be asked for; None: they can.

    Within its sliding window a language model attends to everything, as all forwards here do.
    """
    config = cast(Any, model.config)
    if is_encoder(model):
        limit, whose = config.max_position_embeddings, "positions"
    else:
        limit = getattr(config, "sliding_window", None) if family_of(model).window else None
        whose = "sliding window"
    if limit is None or tokens <= limit:
        return None
    return f"reads at most {limit} tokens (its {whose}), not {tokens}"


def _in_float32(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.float() for x in inputs)
