"""Keys and values of prompts under the frozen base.

Under `answer_tokens` no gradient flows through the prompt and no adapter touches it: its keys and
values are constants of the training set. They are computed once under `no_grad`, kept up to a
memory bound, and the cue rows of every later step attend to them.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from dalorra.prompts import Prompt
from dalorra.stochastic_lora import (
    StochasticPeftModel,
    base_only,
    rank_noise,
    stochastic_layers,
)


class PromptCache:
    """Least-recently-used store of `[layers, 2, kv_heads, tokens, head_dim]` per prompt.

    Args:
        max_bytes: bound on what is kept; a batch is served in full even if it does not fit.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._store: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def past(self, model: StochasticPeftModel, prompts: Sequence[Prompt]) -> DynamicCache:
        """Keys and values of the prompts, padded on the left to the longest, ready to extend."""
        missing = dict.fromkeys(p.prompt_ids for p in prompts if p.prompt_ids not in self._store)
        fresh = {prompt_ids: self._compute(model, prompt_ids) for prompt_ids in missing}
        entries = [
            fresh[p.prompt_ids] if p.prompt_ids in fresh else self._store[p.prompt_ids]
            for p in prompts
        ]
        self._keep(fresh, prompts)
        longest = max(entry.shape[-2] for entry in entries)
        stacked = torch.stack(
            [
                torch.nn.functional.pad(entry, (0, 0, longest - entry.shape[-2], 0))
                for entry in entries
            ],
            dim=2,
        )  # [layers, 2, B, kv_heads, P, head_dim]
        cache = DynamicCache()
        for index, (keys, values) in enumerate(stacked.to(model.device)):
            cache.update(keys, values, index)
        return cache

    @torch.no_grad()
    def _compute(self, model: StochasticPeftModel, prompt_ids: tuple[int, ...]) -> Tensor:
        """One causal pass of the frozen base over one prompt.

        Alone, for in a batch its last digits would depend on the others, and a resumed run, which
        computes it in another batch, would no longer be the unbroken one.
        """
        layers = list(stochastic_layers(model).values())
        trunk = cast(Any, model.get_base_model()).model
        with rank_noise(layers, [base_only] * len(layers)):
            input_ids = torch.tensor([prompt_ids], device=model.device)
            past = trunk(input_ids, use_cache=True).past_key_values
        return torch.stack([torch.cat([layer.keys, layer.values]) for layer in past.layers]).cpu()

    def _keep(self, fresh: dict[tuple[int, ...], Tensor], used: Sequence[Prompt]) -> None:
        for prompt in used:
            if prompt.prompt_ids in self._store:
                self._store.move_to_end(prompt.prompt_ids)
        for key, entry in fresh.items():
            self._store[key] = entry
            self.bytes += entry.nbytes
        while self.bytes > self.max_bytes and self._store:
            _, dropped = self._store.popitem(last=False)
            self.bytes -= dropped.nbytes
