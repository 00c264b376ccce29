"""The output projection at the rows of a trie: log-probabilities of labels of several tokens.

The whole vocabulary is needed for every row, so the head's mask is sampled with the rest: trying
all its masks, as `LabelHead` does, would cost the vocabulary once more for each.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from dalorra.adapter.layer import LowRankUpdate
from dalorra.forward.llama.head import HeadNoise, LabelHead
from dalorra.labels import Labels, LabelTrie, PathSums
from dalorra.posteriors.bank import NoiseBank
from dalorra.posteriors.noise import base_only

_PIECE: Final = 4096
"""Tokens of the vocabulary whose logits are in memory at once."""


class TrieHead:
    """Maps hidden states at a trie's rows to label probabilities.

    Logits of tokens on a path are float32; the normaliser is a product in the model's precision.

    Args:
        weight: of the output projection, `[vocabulary, d]`.
        update: the adapter's; None where the output projection is not adapted.
        trie: of the labels.

    Attributes:
        rows: A, hidden states that an answer is read off.
    """

    def __init__(self, weight: Tensor, update: LowRankUpdate | None, trie: LabelTrie) -> None:
        self.rows = trie.rows
        self._sums = PathSums.of(trie, weight.device)
        self._vocabulary = weight
        self._weight = weight[self._sums.tokens].float()  # [U, d]
        self._update = update and LowRankUpdate(
            update.down.float().clone(), update.up.float().clone(), update.scale
        )

    @property
    def nbytes(self) -> int:
        """Memory of the path tokens' rows and of the update."""
        update = self._update
        return self._weight.nbytes + (update.down.nbytes + update.up.nbytes if update else 0)

    @torch.inference_mode()
    def logits(self, answers: Tensor, samples: range, bank: NoiseBank) -> Tensor:
        """Log-probabilities of the labels' tokens, `[B, M, A, d]` → `[B, M, K]` float32."""
        return self._log_probabilities(answers, self.bind(bank, samples))

    @torch.inference_mode()
    def probabilities(self, answers: Tensor, head_noise: HeadNoise) -> Tensor:
        """Distributions over the labels, `[B, M, A, d]` → `[B, M, 1, K]`."""
        return self._log_probabilities(answers, head_noise).softmax(dim=-1)[:, :, None]

    def bind(self, bank: NoiseBank, samples: range) -> HeadNoise:
        """The head's noise for these samples, of the bank's, M of them."""
        device = self._weight.device
        one = torch.ones(1, device=device)
        if self._update is None:
            return HeadNoise(base_only, one)
        each = torch.tensor(list(samples), device=device).repeat_interleave(self.rows)
        return HeadNoise(bank.noise(each[None])[-1], one)  # of `[B, M·A, r]`

    def _log_probabilities(self, answers: Tensor, head_noise: HeadNoise) -> Tensor:
        x, shape, update = answers.flatten(1, 2).float(), answers.shape[1:3], self._update
        on_path, rounded = F.linear(x, self._weight), x.to(self._vocabulary.dtype)
        activations = None
        if update is not None:
            activations = head_noise.noise(F.linear(x, update.down), x) * update.scale
            on_path += F.linear(activations, update.up[self._sums.tokens])
        pieces = []
        for start in range(0, len(self._vocabulary), _PIECE):
            piece = slice(start, start + _PIECE)
            logits = F.linear(rounded, self._vocabulary[piece]).float()
            if update is not None and activations is not None:
                logits += F.linear(activations, update.up[piece])
            pieces.append(logits.logsumexp(-1))
        normalisers = torch.stack(pieces, dim=-1).logsumexp(-1)  # [B, M·A]
        return self._sums(on_path.unflatten(1, shape), normalisers.unflatten(1, shape))


Head = LabelHead | TrieHead


def head_of(weight: Tensor, update: LowRankUpdate | None, labels: Labels) -> Head:
    """What the labels need, see either."""
    if isinstance(labels, LabelTrie):
        return TrieHead(weight, update, labels)
    return LabelHead(weight, update, labels)
