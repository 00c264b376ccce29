"""Keys and values of prompt prefixes, reused exactly by prompts that start the same way.

Under `answer_tokens` the prompt is read by the frozen base alone, so its keys and values belong
to its tokens and to nothing else: not to a sample, a request or an adapter. They are kept in
blocks of tokens; a block is named by a digest of everything from the start up to its end.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dalorra.blocks import BLOCK, Digest, digests, leading


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """The longest known prefixes of a batch, padded on the right.

    Attributes:
        keys_values: `[layers, 2, B, kv_heads, C, head_dim]`.
        lengths: B prefix lengths, multiples of `BLOCK`; C is the longest.
    """

    keys_values: Tensor
    lengths: list[int]


class PrefixCache:
    """A least-recently-used store of blocks, bounded in bytes. One caller at a time.

    Of one prompt the blocks at its end go first: without those before them they are of no use.

    Args:
        max_bytes: bound on the blocks kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.tokens_looked_up = 0
        self.tokens_found = 0
        self._blocks: OrderedDict[Digest, Tensor] = OrderedDict()

    def find(self, prompts: Sequence[Sequence[int]], *, whole: bool = False) -> CachedPrefix | None:
        """The longest known prefix of each prompt; None when there is none at all.

        Args:
            prompts: B prompts.
            whole: whether a prefix may be all of a prompt: where more rows follow it. Else the
                hidden state of its last token is wanted, not its keys alone.
        """
        found = [self._known_blocks(prompt if whole else prompt[:-1]) for prompt in prompts]
        lengths = [len(blocks) * BLOCK for blocks in found]
        self.tokens_looked_up += sum(len(prompt) for prompt in prompts)
        self.tokens_found += sum(lengths)
        longest = max(lengths)
        if not longest:
            return None
        like = next(blocks[0] for blocks in found if blocks)  # [layers, 2, kv_heads, BLOCK, w]
        empty = like[..., :0, :]
        rows = [
            F.pad(torch.cat([empty, *blocks], dim=-2), (0, 0, 0, longest - length))
            for blocks, length in zip(found, lengths, strict=True)
        ]
        return CachedPrefix(torch.stack(rows, dim=2), lengths)

    def add(
        self, prompts: Sequence[Sequence[int]], starts: Sequence[int], keys_values: Tensor
    ) -> None:
        """Keeps the complete blocks of the rows that a forward computed.

        Args:
            prompts: B prompts.
            starts: where each prompt's computed rows begin, a multiple of `BLOCK`.
            keys_values: `[layers, 2, B, kv_heads, rows, head_dim]` of those rows.
        """
        for b, (prompt, start) in enumerate(zip(prompts, starts, strict=True)):
            for place, digest in reversed(list(enumerate(digests(prompt)))):
                first = place * BLOCK - start
                if first < 0 or digest in self._blocks:
                    continue
                block = keys_values[:, :, b, :, first : first + BLOCK].clone()
                self._blocks[digest] = block
                self.bytes += block.nbytes
                while self.bytes > self.max_bytes:
                    _, dropped = self._blocks.popitem(last=False)
                    self.bytes -= dropped.nbytes

    def known(self, prompt: Sequence[int]) -> int:
        """Tokens of a prompt that are known now; counts as no use of them."""
        return BLOCK * leading(digests(prompt), self._blocks)

    def _known_blocks(self, prompt: Sequence[int]) -> list[Tensor]:
        known: dict[Digest, Tensor] = {}
        for digest in digests(prompt):
            block = self._blocks.get(digest)
            if block is None:
                break
            known[digest] = block
        for digest in reversed(known):
            self._blocks.move_to_end(digest)
        return list(known.values())
