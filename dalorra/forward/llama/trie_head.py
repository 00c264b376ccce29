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


class Vocabulary:
    """The output projection of the whole vocabulary, which the tokens on a path are normalised by.

    Args:
        weight: `[vocabulary, d]`.
        update: the adapter's; None where the output projection is not adapted.
    """

    def __init__(self, weight: Tensor, update: LowRankUpdate | None) -> None:
        self._weight = weight
        self.update = update and LowRankUpdate(
            update.down.float().clone(), update.up.float().clone(), update.scale
        )

    @property
    def nbytes(self) -> int:
        """Memory of the update."""
        update = self.update
        return update.down.nbytes + update.up.nbytes if update else 0

    def rows(self, tokens: Tensor) -> Tensor:
        """Of these tokens, `[U, d]` float32."""
        return self._weight[tokens].float()

    def normalisers(self, x: Tensor, activations: Tensor | None) -> Tensor:
        """The log Σ exp of all logits, `[…]` float32, by products in the model's precision.

        Args:
            x: hidden states, `[…, d]` float32.
            activations: of the update, scaled, `[…, r]`; None where there is none.
        """
        rounded, pieces = x.to(self._weight.dtype), []
        for start in range(0, len(self._weight), _PIECE):
            piece = slice(start, start + _PIECE)
            logits = F.linear(rounded, self._weight[piece]).float()
            if self.update is not None and activations is not None:
                logits += F.linear(activations, self.update.up[piece])
            pieces.append(logits.logsumexp(-1))
        return torch.stack(pieces, dim=-1).logsumexp(-1)


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
        self._vocabulary = Vocabulary(weight, update)
        self._weight = self._vocabulary.rows(self._sums.tokens)  # [U, d]

    @property
    def nbytes(self) -> int:
        """Memory of the path tokens' rows and of the update."""
        return self._weight.nbytes + self._vocabulary.nbytes

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
        if self._vocabulary.update is None:
            return HeadNoise(base_only, one)
        each = torch.tensor(list(samples), device=device).repeat_interleave(self.rows)
        return HeadNoise(bank.noise(each[None])[-1], one)  # of `[B, M·A, r]`

    def _log_probabilities(self, answers: Tensor, head_noise: HeadNoise) -> Tensor:
        x, shape, update = (
            answers.flatten(1, 2).float(),
            answers.shape[1:3],
            self._vocabulary.update,
        )
        on_path, activations = F.linear(x, self._weight), None
        if update is not None:
            activations = head_noise.noise(F.linear(x, update.down), x) * update.scale
            on_path += F.linear(activations, update.up[self._sums.tokens])
        normalisers = self._vocabulary.normalisers(x, activations)  # [B, M·A]
        return self._sums(on_path.unflatten(1, shape), normalisers.unflatten(1, shape))


Head = LabelHead | TrieHead


def head_of(weight: Tensor, update: LowRankUpdate | None, labels: Labels) -> Head:
    """What the labels need, see either."""
    if isinstance(labels, LabelTrie):
        return TrieHead(weight, update, labels)
    return LabelHead(weight, update, labels)
