"""The stochastic LoRA layer, on PEFT's extension points.

    y = W₀x + (α/r) · B · noise(A x)                                             (Eq. 1, Eq. 5)

Every method that is served here is noise on the down-projection A·x: a `RankNoise` maps
`[..., rows, r]` to `[..., rows, r]`. For DALorRA it is a product with the row mask z, one row of
the mask per row of the input, so that rows of one forward can carry different samples.

The base weight is neither merged nor saved; a tied head stays tied.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel
from peft.tuners import lora
from torch import Tensor, nn
from transformers import PreTrainedModel

from dalorra.base.families import CLASS_HEAD, drop_class_head
from dalorra.posteriors.noise import ModuleTensors, RankNoise, base_only
from dalorra.posteriors.posterior import Posterior

ADAPTER_NAME: Final = "default"
HEAD: Final = "lm_head"
"""Name of the output projection."""


class StochasticLoraLinear(lora.Linear):
    """`lora.Linear` whose rank activations pass through `rank_noise` (None: plain LoRA).

    The tensors of its posterior are attributes `lora_<name>`, which PEFT saves and loads with A
    and B.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, **kwargs: Any) -> None:
        self.rank_noise: RankNoise | None = None
        self._posterior_tensors: tuple[str, ...] = ()
        super().__init__(base_layer, adapter_name, **kwargs)

    def add_posterior(self, tensors: Mapping[str, Tensor]) -> None:
        """Adds trainable tensors beside A and B, with these initial values."""
        for name, values in tensors.items():
            parameter = nn.Parameter(values.detach().clone())
            setattr(self, f"lora_{name}", nn.ParameterDict({ADAPTER_NAME: parameter}))
        self._posterior_tensors = tuple(tensors)
        added = tuple(f"lora_{name}" for name in tensors)
        # PEFT reads the names of what an adapter owns from here.
        self.adapter_layer_names = (*lora.Linear.adapter_layer_names, *added)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise ValueError(
            "a stochastic adapter has no single merged weight; `dalorra export` writes plain LoRAs"
        )

    @property
    def down(self) -> Tensor:
        """A, `[r, d_in]`."""
        return cast(Tensor, self.lora_A[ADAPTER_NAME].weight)

    @property
    def up(self) -> Tensor:
        """B, `[d_out, r]`."""
        return cast(Tensor, self.lora_B[ADAPTER_NAME].weight)

    @property
    def scale(self) -> float:
        """α / r."""
        return float(self.scaling[ADAPTER_NAME])

    def posterior_tensor(self, name: str) -> nn.Parameter:
        """A tensor that the posterior added."""
        return cast(nn.Parameter, getattr(self, f"lora_{name}")[ADAPTER_NAME])

    @property
    def tensors(self) -> ModuleTensors:
        """A, B and what the posterior added, differentiable."""
        own = {name: self.posterior_tensor(name) for name in self._posterior_tensors}
        return {"down": self.down, "up": self.up, **own}

    @property
    def mask_logits(self) -> nn.Parameter:
        """φ `[r]`, where the posterior is one over rank masks."""
        return self.posterior_tensor("mask_logits")

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`[..., rows, d_in]` → `[..., rows, d_out]`."""
        base = cast(Tensor, self.base_layer(x))
        if self.rank_noise is base_only:
            return base
        return base + (F.linear(self._rank_activations(x), self.up) * self.scale).to(base.dtype)

    def rows(self, x: Tensor, indices: Tensor) -> Tensor:
        """Only the output features `indices`, in float32: the label logits of a head.

        Args:
            x: `[..., rows, d_in]`.
            indices: `[K]` output features.

        Returns:
            `[..., rows, K]` float32.
        """
        weight = cast(nn.Linear, self.base_layer).weight[indices]  # [K, d_in]
        base = F.linear(x.float(), weight.float())
        if self.rank_noise is base_only:
            return base
        update = F.linear(self._rank_activations(x).float(), self.up[indices].float())
        return base + update * self.scale

    def _rank_activations(self, x: Tensor) -> Tensor:
        if x.dim() == 2:  # an encoder's pooler reads one row of each sequence
            return self._rank_activations(x[:, None])[:, 0]
        x = x.to(self.down.dtype)
        activations = F.linear(x, self.down)  # [..., rows, r]
        return activations if self.rank_noise is None else self.rank_noise(activations, x)


class StochasticPeftModel(PeftModel):
    """A `PeftModel` that never writes the base weights beside the adapter.

    PEFT's default saves the base layer of every adapted embedding or head: 1 GB for an 8B model.
    """

    def save_pretrained(
        self,
        save_directory: str,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        save_embedding_layers: str | bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().save_pretrained(
            save_directory,
            safe_serialization,
            selected_adapters,
            save_embedding_layers,
            *args,
            **kwargs,
        )


def lora_config(
    rank: int,
    alpha: float,
    modules: Sequence[str],
    base_model_name: str,
    last_layers: range | None = None,
    head: Sequence[str] = (),
) -> LoraConfig:
    """PEFT's own description of the adapter: what `adapter_config.json` holds.

    `head` names modules that are trained and saved whole.
    """
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT annotates int, any number works
        target_modules=list(modules),
        lora_dropout=0.0,
        bias="none",
        layers_to_transform=None if last_layers is None else list(last_layers),
        base_model_name_or_path=base_model_name,
        modules_to_save=list(head) or None,
    )


_OUR_SETTINGS: Final = frozenset(
    (
        "r",
        "lora_alpha",
        "target_modules",
        "layers_to_transform",
        "base_model_name_or_path",
        "inference_mode",
        "peft_version",
    )
)


def foreign_setting(config: LoraConfig, *, has_head: bool = False) -> str | None:
    """The first setting that `lora_config` never makes, such as `use_dora`.

    Our layer would ignore some of them without a word, and a plain LoRA cannot express others.
    Only an adapter that `has_head` saves whole modules.
    """
    usual = LoraConfig().to_dict() | (
        {"modules_to_save": config.modules_to_save} if has_head else {}
    )
    return next(
        (
            name
            for name, value in config.to_dict().items()
            if name not in _OUR_SETTINGS and value != usual.get(name)
        ),
        None,
    )


def attach(
    model: PreTrainedModel,
    config: LoraConfig,
    posterior: Posterior,
    model_class: type[StochasticPeftModel] = StochasticPeftModel,
) -> StochasticPeftModel:
    """Wraps the target modules of `model` in place; A random, B zero, the rest as in the prior.

    The base must not be wrapped already; `detach` gives it back.

    Raises:
        ValueError: a target module the base does not have, or that is trained whole or replaced.
    """
    try:
        _require_modules(model, config)
    except ValueError:
        drop_class_head(model)
        raise
    # PEFT documents this name as its extension point, underscore and all.
    config._register_custom_module({nn.Linear: StochasticLoraLinear})  # noqa: SLF001
    with warnings.catch_warnings():
        # A tied head is neither merged nor saved; transformers deprecates what PEFT 0.21 reads.
        for message in (".*tie_word_embeddings=True.*", ".*is_gradient_checkpointing.*"):
            warnings.filterwarnings("ignore", message=message)
        peft_model = model_class(model, config, adapter_name=ADAPTER_NAME)
    for layer in stochastic_layers(peft_model).values():
        layer.add_posterior(posterior.tensors(layer.down))
    return peft_model


def _require_modules(model: PreTrainedModel, config: LoraConfig) -> None:
    """PEFT is content with one match; a misspelt second module would be left out silently."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in sorted(config.target_modules or ()):
        if not any(f".{name}".endswith(f".{target}") for name in names):
            raise ValueError(f"the base model has no linear module {target!r}")
        if target in (config.modules_to_save or ()):
            raise ValueError(f"{target!r} is part of the head, which is trained: leave it out")
        if target == HEAD and config.modules_to_save:
            raise ValueError(f"a class head is in the place of {target!r}: leave it out")


def detach(peft_model: PeftModel) -> PreTrainedModel:
    """The base model without the adapter, its own modules restored."""
    base = cast(PreTrainedModel, peft_model.unload())
    drop_class_head(base)
    return base


def stochastic_layers(model: nn.Module) -> dict[str, StochasticLoraLinear]:
    """Adapted modules by their name in the base model, in model order (head last)."""
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, StochasticLoraLinear)
    }


def module_tensors(model: nn.Module) -> list[ModuleTensors]:
    """`ModuleTensors` of all adapted modules, in model order."""
    return [layer.tensors for layer in stochastic_layers(model).values()]


def mask_logits(model: nn.Module) -> Tensor:
    """φ of all modules, `[modules, r]`, differentiable."""
    return torch.stack([layer.mask_logits for layer in stochastic_layers(model).values()])


@contextmanager
def rank_noise(
    layers: Sequence[StochasticLoraLinear], noise: Sequence[RankNoise | None]
) -> Iterator[None]:
    """Applies one `RankNoise` per layer inside the block, and restores what was there before."""
    before = [layer.rank_noise for layer in layers]
    try:
        for layer, layer_noise in zip(layers, noise, strict=True):
            layer.rank_noise = layer_noise
        yield
    finally:
        for layer, layer_noise in zip(layers, before, strict=True):
            layer.rank_noise = layer_noise


def class_head(model: StochasticPeftModel) -> nn.Linear | None:
    """What a language model's labels are read off in place of `lm_head`, if the adapter has it."""
    wrapped = getattr(model.get_base_model(), CLASS_HEAD, None)
    return None if wrapped is None else cast(nn.Linear, wrapped.modules_to_save[ADAPTER_NAME])


@dataclass(frozen=True, slots=True, eq=False)
class LowRankUpdate:
    """(α/r) · B · noise(A x).

    Attributes:
        down: A, `[r, d_in]`.
        up: B, `[d_out, r]`.
        scale: α/r.
    """

    down: Tensor
    up: Tensor
    scale: float


Updates = Mapping[str, LowRankUpdate]
"""An adapter's updates by the module's name in the base model, in model order (head last)."""


def low_rank_updates(model: nn.Module) -> Updates:
    """The updates of an attached adapter, as they are now; the tensors are the model's own."""
    return {
        name: LowRankUpdate(layer.down.detach(), layer.up.detach(), layer.scale)
        for name, layer in stochastic_layers(model).items()
    }
