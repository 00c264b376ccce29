"""The label rows of the output projection, sampled or integrated over its own mask.

The head's mask acts on one hidden state alone, after everything else. Given the hidden state of a
sample, its 2^r masks can all be tried at the cost of a few multiplications, so that the posterior
over the head is integrated exactly (Rao–Blackwell) instead of sampled once:

    p(y | h) = Σ_z q(z) softmax(W₀ h + (α/r) B diag(z) A h)
"""

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from dalorra.adapter.layer import LowRankUpdate
from dalorra.posteriors.bank import NoiseBank
from dalorra.posteriors.noise import RankNoise, base_only

MAX_INTEGRATED_RANK: Final = 10
"""2^10 masks; beyond that the head is sampled."""


@dataclass(frozen=True, slots=True, eq=False)
class HeadNoise:
    """The head's masks for some samples of a bank.

    Attributes:
        noise: maps A·x `[B, M, S, r]`.
        weights: of the S masks of each sample, `[S]`, sums to 1.
    """

    noise: RankNoise
    weights: Tensor


def integrated(bank: NoiseBank) -> HeadNoise | None:
    """All masks of the head, where the bank says so and there are not too many of them."""
    on = bank.head_probabilities
    if on is None or len(on) > MAX_INTEGRATED_RANK:
        return None
    masks = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], device=on.device)] * len(on))
    masks = masks.view(-1, len(on))  # [2^r, r]
    weights = torch.where(masks > 0, on, 1.0 - on).prod(dim=-1)  # [2^r]
    return HeadNoise(lambda activations, _: activations * masks, weights)


class LabelHead:
    """Maps hidden states at the end of the cue to label probabilities, in float32.

    Args:
        weight: of the output projection, `[vocabulary, d]`, or of a class head, `[K, d]`.
        update: the adapter's; None where it is not adapted.
        label_ids: `[K]` token ids or classes, the only rows that are kept.

    Attributes:
        rows: A, hidden states that an answer is read off.
    """

    rows = 1

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
    def logits(self, answers: Tensor, samples: range, bank: NoiseBank) -> Tensor:
        """`[B, M, 1, d]` → `[B, M, K]` float32, the head under the same sample as the rest."""
        head_noise = self.bind(bank, samples, integrate=False)
        return self._adapted(answers, head_noise)[:, :, 0]

    @torch.inference_mode()
    def probabilities(self, answers: Tensor, head_noise: HeadNoise) -> Tensor:
        """Distributions over the labels under the head's masks, `[B, M, 1, d]` → `[B, M, S, K]`."""
        return self._adapted(answers, head_noise).softmax(dim=-1)

    def bind(self, bank: NoiseBank, samples: range, *, integrate: bool = True) -> HeadNoise:
        """The head's noise for these samples.

        Args:
            bank: of the adapter.
            samples: of the bank, M of them.
            integrate: whether all masks of the head are tried where the bank says so.
        """
        every = integrated(bank) if integrate and self._update is not None else None
        return every or self._sampled(bank, samples)

    def _sampled(self, bank: NoiseBank, samples: range) -> HeadNoise:
        device = self._weight.device
        one = torch.ones(1, device=device)
        if self._update is None:
            return HeadNoise(base_only, one)
        noise = bank.noise(torch.tensor([list(samples)], device=device))[-1]
        return HeadNoise(lambda a, x: noise(a[:, :, 0], x[:, :, 0])[:, :, None], one)

    def _adapted(self, x: Tensor, head_noise: HeadNoise) -> Tensor:
        """`[B, M, 1, d]` → `[B, M, S, K]`: W₀x + (α/r) · B · noise(A x)."""
        x, update = x.float(), self._update
        base = F.linear(x, self._weight)
        if update is None:
            return base
        activations = head_noise.noise(F.linear(x, update.down), x)
        return base + F.linear(activations, update.up) * update.scale
