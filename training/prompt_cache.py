"""Keys and values of prompts under the frozen base.

Under `answer_tokens` no gradient flows through the prompt and no adapter touches it: its keys and
values are constants of the training set. They are computed under `no_grad`, several prompts in one
pass or one long prompt in several, and the cue rows of a step attend to them. A run that comes back
to its prompts keeps as many as fit into memory.

The last digits of a prompt's keys and values depend on the prompts it is computed with, and a
resumed run must repeat an unbroken one bit for bit. So what is kept is computed in groups that
the training set alone decides, and the rest of a mini-batch together: a resumed run has the same
mini-batches.
"""

from collections.abc import Iterator, Sequence
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

ROWS: Final = 4096
"""Most rows of a pass."""

PADDED: Final = 1.25
"""Rows of a pass, padding included, for each that is none, at most."""

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
        for group in _passes(distinct, GROUP):
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
        loose = sorted((p for p in distinct if p not in self._groups), key=len)
        entries = {
            prompt_ids: self._kept[prompt_ids].to(model.device)
            for prompt_ids in distinct
            if prompt_ids in self._kept
        }
        for group in _passes(loose, len(loose)):
            entries.update(zip(group, _compute(model, group), strict=True))
        longest = max(map(len, distinct))
        cache = DynamicCache()
        for index in range(len(entries[distinct[0]])):  # so that one layer alone is there twice
            padded = {
                prompt_ids: F.pad(entry[index], (0, 0, longest - len(prompt_ids), 0))
                for prompt_ids, entry in entries.items()
            }
            stacked = torch.stack([padded[prompt.prompt_ids] for prompt in prompts], dim=1)
            cache.update(*stacked, index)  # [B, kv_heads, P, head_dim] each
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


def _passes(prompts: Sequence[PromptIds], most: int) -> Iterator[tuple[PromptIds, ...]]:
    """Consecutive prompts, at most so many, whose padded rows fit one pass; or one alone.

    Args:
        prompts: ascending by length.
        most: prompts of a pass.
    """
    group: tuple[PromptIds, ...] = ()
    for prompt in prompts:
        rows, real = (len(group) + 1) * len(prompt), sum(map(len, (*group, prompt)))
        if group and (len(group) == most or rows > min(ROWS, PADDED * real)):
            yield group
            group = ()
        group = (*group, prompt)
    if group:
        yield group


@torch.no_grad()
def _compute(model: StochasticPeftModel, prompts: Sequence[PromptIds]) -> list[Tensor]:
    """One causal pass of the frozen base over prompts, padded on the right where no row looks.

    A prompt with more rows than a pass may have is alone, and takes several.
    """
    layers = list(stochastic_layers(model).values())
    base = cast(PreTrainedModel, model.get_base_model())
    longest = max(map(len, prompts))
    ids = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
    input_ids = torch.tensor(ids, device=model.device)
    past: Any = DynamicCache()
    with rank_noise(layers, [base_only] * len(layers)), differentiable_attention(base):
        for piece in input_ids.split(ROWS, dim=1):
            cast(Any, base).model(piece, use_cache=True, **{CACHE_ARGUMENT: past})
    return [_of_prompt(past, b, len(prompt)) for b, prompt in enumerate(prompts)]


def _of_prompt(past: Any, b: int, tokens: int) -> Tensor:
    """A copy, so that the padding's memory can go, `[layers, 2, kv_heads, tokens, head_dim]`."""
    layers = [
        torch.stack([kv[b, :, :tokens] for kv in (layer.keys, layer.values)])
        for layer in past.layers
    ]
    return torch.stack(layers)
