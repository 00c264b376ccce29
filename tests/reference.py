"""The adapter by other means than ours: plain PEFT, one sample and one sequence at a time.

A mask is folded into B, and the model runs its normal causal forward without packing, caches,
custom masks or custom layers. Nothing here imports `forward.reference_rows` or `forward.reference`.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from dalorra.adapter.layer import StochasticPeftModel, stochastic_layers
from dalorra.prompts import Prompt


class PlainLora:
    """`source`'s A, B, α and modules as plain PEFT LoRA on its own copy of `base`.

    Args:
        base: the base model, without an adapter.
        source: the adapter to reproduce; read again at every call.
        scope: `all_tokens`, or `answer_tokens`: the update of every row before the cue is
            set to zero.
    """

    def __init__(self, base: PreTrainedModel, source: StochasticPeftModel, scope: str) -> None:
        self.source = source
        self.scope = scope
        layers = stochastic_layers(source)
        first = next(iter(layers.values()))
        rank = first.down.shape[0]
        config = LoraConfig(
            r=rank, lora_alpha=round(first.scale * rank), target_modules=list(layers)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on tied heads
            self.model: PeftModel = get_peft_model(copy.deepcopy(base), config).eval()
        self.layers: dict[str, Any] = {
            name: self.model.base_model.model.get_submodule(name) for name in layers
        }
        self._prompt_rows = 0
        for layer in self.layers.values():
            layer.lora_B["default"].register_forward_hook(self._hide_prompt())

    def logits(self, prompt: Prompt, mask: Tensor | None) -> Tensor:
        """All logits of the last row, `[vocabulary]`, under `mask` `[modules, r]` (None: ones)."""
        sources = stochastic_layers(self.source)
        with torch.no_grad():
            plain = [
                (source.down, source.up if mask is None else source.up * mask[index])
                for index, source in enumerate(sources.values())
            ]
        return self.plain_logits(prompt, plain)

    @torch.no_grad()
    def plain_logits(self, prompt: Prompt, plain: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """All logits of the last row, `[vocabulary]`, with this A and B of each module."""
        for layer, (down, up) in zip(self.layers.values(), plain, strict=True):
            layer.lora_A["default"].weight.copy_(down)
            layer.lora_B["default"].weight.copy_(up)
        self._prompt_rows = len(prompt.prompt_ids) if self.scope == "answer_tokens" else 0
        ids = torch.tensor([[*prompt.prompt_ids, *prompt.cue_ids]])
        logits: Tensor = self.model(input_ids=ids).logits[0, -1]
        return logits

    def bank_logits(
        self, prompts: list[Prompt], masks: Tensor, label_ids: tuple[int, ...]
    ) -> Tensor:
        """Label logits `[B, M, K]` under `masks` `[M, modules, r]`, one at a time."""
        rows = [
            torch.stack([self.logits(prompt, mask)[list(label_ids)] for mask in masks])
            for prompt in prompts
        ]
        return torch.stack(rows)

    def _hide_prompt(self) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            keep = torch.arange(output.shape[1]) >= self._prompt_rows
            return output * keep[None, :, None]

        return hook
