"""What a forward is given, brought to the device in one go, so that the host never waits for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from dalorra.packing import Scope, right_padded
from dalorra.prompts import Prompt


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on `device`; a GPU reads it from pinned memory while the host goes on."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True, slots=True, eq=False)
class StagedPrompts:
    """B prompts with the same cue, as a forward reads them.

    Attributes:
        ids: `[B, P]` token ids, padded on the right. Under `answer_tokens` prompts without their
            known prefixes; under `all_tokens` prompts and cues.
        lengths: `[B]`, tokens of each that are no padding.
        known: `[B]`, tokens before those, whose keys and values are known.
        cue_ids: `[k]`.
    """

    ids: Tensor
    lengths: Tensor
    known: Tensor
    cue_ids: Tensor

    @classmethod
    def of(
        cls, prompts: Sequence[Prompt], scope: Scope, known: Sequence[int] | None = None
    ) -> Self:
        """On the host.

        Args:
            prompts: B prompts with the same cue.
            scope: which rows the adapter acts on.
            known: how many tokens of each prompt have keys already; None: none.
        """
        cue = prompts[0].cue_ids
        if scope == "all_tokens":
            sequences = [(*prompt.prompt_ids, *cue) for prompt in prompts]
        elif known:
            sequences = [p.prompt_ids[start:] for p, start in zip(prompts, known, strict=True)]
        else:
            sequences = [prompt.prompt_ids for prompt in prompts]
        ids, lengths = right_padded(sequences)
        before = torch.tensor(known) if known else torch.zeros_like(lengths)
        return cls(ids, lengths, before, torch.tensor(cue))

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        parts = (self.ids, self.lengths, self.known, self.cue_ids)
        return type(self)(*(to_device(part, device) for part in parts))

    def copy_(self, others: "StagedPrompts") -> None:
        """Overwrites the tensors by others of the same shape."""
        self.ids.copy_(others.ids)
        self.lengths.copy_(others.lengths)
        self.known.copy_(others.known)
        self.cue_ids.copy_(others.cue_ids)

    def padded(self, prompts: int, tokens: int) -> Self:
        """With copies of the last prompt up to B = `prompts`, and padding up to P = `tokens`."""
        more = prompts - len(self.ids)

        def filled(values: Tensor) -> Tensor:
            return torch.cat([values, values[-1:].expand(more, *values.shape[1:])])

        ids = F.pad(self.ids, (0, tokens - self.ids.shape[1]))
        return type(self)(filled(ids), filled(self.lengths), filled(self.known), self.cue_ids)
