"""The label rows of the output projection, sampled or integrated over its own mask.

The head's mask acts on one hidden state alone, after everything else. Given the hidden state of a
sample, its 2^r masks can all be tried at the cost of a few multiplications, so that the posterior
over the head is integrated exactly (Rao–Blackwell) instead of sampled once:

    p(y | h) = Σ_z q(z) softmax(W₀ h + (α/r) B diag(z) A h)
"""

from typing import Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalorra.bank import NoiseBank
from dalorra.stochastic_lora import StochasticLoraLinear, rank_noise

MAX_INTEGRATED_RANK: Final = 10
"""2^10 masks; beyond that the head is sampled."""


class LabelHead:
    """Maps hidden states at the end of the cue to label probabilities.

    Args:
        head: the output projection, adapted or not.
        label_ids: `[K]` token ids.
    """

    def __init__(self, head: nn.Module, label_ids: Tensor) -> None:
        self._head = head
        self._label_ids = label_ids

    def logits(self, answers: Tensor, members: range, bank: NoiseBank) -> Tensor:
        """`[B, M, d]` → `[B, M, K]` float32, the head under the same sample as the rest."""
        if not isinstance(self._head, StochasticLoraLinear):
            weight = cast(nn.Linear, self._head).weight[self._label_ids]
            return F.linear(answers.float(), weight.float())
        index = torch.tensor([list(members)], device=answers.device)
        with rank_noise([self._head], bank.noise(index)[-1:]):
            return self._head.rows(answers, self._label_ids)

    @torch.inference_mode()
    def probabilities(
        self, answers: Tensor, members: range, bank: NoiseBank
    ) -> tuple[Tensor, Tensor]:
        """Distributions over the labels under the head's masks, and the masks' weights.

        Returns:
            `[B, M, S, K]` float32 and `[S]`, which sums to 1; S is 1 where the head is sampled.
        """
        on = bank.head_probabilities
        if (
            on is None
            or not isinstance(self._head, StochasticLoraLinear)
            or len(on) > MAX_INTEGRATED_RANK
        ):
            logits = self.logits(answers, members, bank)[:, :, None]
            return logits.softmax(dim=-1), answers.new_ones(1, dtype=torch.float32)
        masks = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], device=answers.device)] * len(on))
        masks = masks.view(-1, len(on))  # [2^r, r]
        weights = torch.where(masks > 0, on, 1.0 - on).prod(dim=-1)  # [2^r]
        with rank_noise([self._head], [lambda activations, _: activations * masks]):
            logits = self._head.rows(answers[:, :, None], self._label_ids)  # [B, M, 2^r, K]
        return logits.softmax(dim=-1), weights
