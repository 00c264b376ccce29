"""The label rows of the output projection, sampled or integrated over its own mask.

The head's mask acts on one hidden state alone, after everything else. Given the hidden state of a
sample, its 2^r masks can all be tried at the cost of a few multiplications, so that the posterior
over the head is integrated exactly (Rao–Blackwell) instead of sampled once:

    p(y | h) = Σ_z q(z) softmax(W₀ h + (α/r) B diag(z) A h)
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from dalorra.bank import NoiseBank
from dalorra.low_rank import LowRankUpdate
from dalorra.stochastic_lora import RankNoise

MAX_INTEGRATED_RANK: Final = 10
"""2^10 masks; beyond that the head is sampled."""


class LabelHead:
    """Maps hidden states at the end of the cue to label probabilities, in float32.

    Args:
        weight: of the output projection, `[vocabulary, d]`.
        update: the adapter's; None where the output projection is not adapted.
        label_ids: `[K]` token ids, the only rows that are kept.
    """

    def __init__(self, weight: Tensor, update: LowRankUpdate | None, label_ids: Tensor) -> None:
        self._weight = weight[label_ids].float()  # [K, d]
        self._update = update and LowRankUpdate(
            update.down.float().clone(), update.up[label_ids].float(), update.scale
        )

    @property
    def nbytes(self) -> int:
        """Memory of the label rows and their update."""
        update = self._update
        return self._weight.nbytes + (update.down.nbytes + update.up.nbytes if update else 0)

    @torch.inference_mode()
    def logits(self, answers: Tensor, members: range, bank: NoiseBank) -> Tensor:
        """`[B, M, d]` → `[B, M, K]` float32, the head under the same sample as the rest."""
        if self._update is None:
            return F.linear(answers.float(), self._weight)
        index = torch.tensor([list(members)], device=answers.device)
        return self._adapted(answers, self._update, bank.noise(index)[-1])

    @torch.inference_mode()
    def probabilities(
        self, answers: Tensor, members: range, bank: NoiseBank
    ) -> tuple[Tensor, Tensor]:
        """Distributions over the labels under the head's masks, and the masks' weights.

        Returns:
            `[B, M, S, K]` float32 and `[S]`, which sums to 1; S is 1 where the head is sampled.
        """
        on = bank.head_probabilities
        if on is None or self._update is None or len(on) > MAX_INTEGRATED_RANK:
            logits = self.logits(answers, members, bank)[:, :, None]
            return logits.softmax(dim=-1), answers.new_ones(1, dtype=torch.float32)
        masks = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], device=answers.device)] * len(on))
        masks = masks.view(-1, len(on))  # [2^r, r]
        weights = torch.where(masks > 0, on, 1.0 - on).prod(dim=-1)  # [2^r]
        logits = self._adapted(
            answers[:, :, None], self._update, lambda activations, _: activations * masks
        )  # [B, M, 2^r, K]
        return logits.softmax(dim=-1), weights

    def _adapted(self, x: Tensor, update: LowRankUpdate, noise: RankNoise) -> Tensor:
        """`[…, d]` → `[…, K]`: W₀x + (α/r) · B · noise(A x)."""
        x = x.float()
        activations = noise(F.linear(x, update.down), x)
        return F.linear(x, self._weight) + F.linear(activations, update.up) * update.scale
