"""Keys and values of prompts under the frozen base.

Under `answer_tokens` no gradient flows through the prompt and no adapter touches it: its keys and
values are constants of the training set. They are computed under `no_grad`, several prompts in one
pass, and the cue rows of a step attend to them. A run that comes back to its prompts keeps as many
as fit into memory.

The last digits of a prompt's keys and values depend on the prompts it is computed with, and a
resumed run must repeat an unbroken one bit for bit. So what is kept is computed in groups that
the training set alone decides, and the rest of a mini-batch together: a resumed run has the same
mini-batches.
"""

from collections.abc import Sequence
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from dalorra.adapter.layer import StochasticPeftModel, rank_noise, stochastic_layers
from dalorra.base.families import head_width
from dalorra.forward.reference import CACHE_ARGUMENT
from dalorra.posteriors.noise import base_only
from dalorra.prompts import Prompt
from training.attention import differentiable_attention

GROUP: Final = 8
"""Prompts of similar length that are computed together to be kept."""

PromptIds = tuple[int, ...]


class PromptCache:
    """Keeps `[layers, 2, kv_heads, tokens, head_dim]` per prompt, on the CPU.

    Args:
        max_bytes: bound on what is kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._groups: dict[PromptIds, tuple[PromptIds, ...]] = {}
        self._kept: dict[PromptIds, Tensor] = {}

    def plan(self, model: StochasticPeftModel, prompts: Sequence[Prompt], draws: int) -> None:
        """Chooses the prompts to keep; before this, and for a run without repetitions, none.

        What is kept already stays if this training set keeps it too, in the same group.

        Args:
            model: base with adapter.
            prompts: the training set.
            draws: how many prompts the run asks for in all, repetitions included.
        """
        distinct = sorted({prompt.prompt_ids for prompt in prompts}, key=lambda p: (len(p), p))
        before, self._groups = self._groups, {}
        room = self.max_bytes // bytes_per_token(model) if draws > len(distinct) else 0
        for start in range(0, len(distinct), GROUP):
            group = tuple(distinct[start : start + GROUP])
            room -= sum(map(len, group))
            if room < 0:
                break
            self._groups.update(dict.fromkeys(group, group))
        self._kept = {
            prompt_ids: entry
            for prompt_ids, entry in self._kept.items()
            if self._groups.get(prompt_ids) == before[prompt_ids]
        }
        self.bytes = sum(entry.nbytes for entry in self._kept.values())

    def past(self, model: StochasticPeftModel, prompts: Sequence[Prompt]) -> DynamicCache:
        """Keys and values of the prompts, padded on the left to the longest, ready to extend."""
        distinct = list(dict.fromkeys(prompt.prompt_ids for prompt in prompts))
        for prompt_ids in distinct:
            if prompt_ids in self._groups and prompt_ids not in self._kept:
                self._keep(model, self._groups[prompt_ids])
        loose = [prompt_ids for prompt_ids in distinct if prompt_ids not in self._groups]
        fresh = dict(zip(loose, _compute(model, loose), strict=True))
        longest = max(map(len, distinct))
        padded = {}
        for prompt_ids in distinct:
            entry = fresh[prompt_ids] if prompt_ids in fresh else self._kept[prompt_ids]
            left = longest - len(prompt_ids)
            padded[prompt_ids] = F.pad(entry.to(model.device), (0, 0, left, 0))
        stacked = torch.stack([padded[prompt.prompt_ids] for prompt in prompts], dim=2)
        cache = DynamicCache()
        for index, (keys, values) in enumerate(stacked):  # [2, B, kv_heads, P, head_dim] each
            cache.update(keys, values, index)
        return cache

    def _keep(self, model: StochasticPeftModel, group: Sequence[PromptIds]) -> None:
        for prompt_ids, entry in zip(group, _compute(model, group), strict=True):
            self._kept[prompt_ids] = entry.cpu()
            self.bytes += entry.nbytes


def bytes_per_token(model: StochasticPeftModel) -> int:
    """Memory of one token's keys and values in all layers."""
    base = cast(PreTrainedModel, model.get_base_model())
    config = cast(Any, base.config)
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * head_width(base)
    return int(numbers * base.dtype.itemsize)


@torch.no_grad()
def _compute(model: StochasticPeftModel, prompts: Sequence[PromptIds]) -> list[Tensor]:
    """One causal pass of the frozen base over prompts, padded on the right where no row looks."""
    if not prompts:
        return []
    layers = list(stochastic_layers(model).values())
    base = cast(PreTrainedModel, model.get_base_model())
    longest = max(map(len, prompts))
    ids = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
    input_ids = torch.tensor(ids, device=model.device)
    with rank_noise(layers, [base_only] * len(layers)), differentiable_attention(base):
        past: Any = DynamicCache()
        cast(Any, base).model(input_ids, use_cache=True, **{CACHE_ARGUMENT: past})
    every = torch.stack([torch.stack([layer.keys, layer.values]) for layer in past.layers])
    # [layers, 2, B, kv_heads, P, head_dim]; copies, so that the padding's memory can go
    return [every[:, :, b, :, : len(prompt)].clone() for b, prompt in enumerate(prompts)]
