"""Names for the beginnings of token sequences: what begins alike has the same first names.

A sequence is cut into blocks, and a block is named by a digest of everything from the start up to
its end.
"""

import hashlib
import struct
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Final

BLOCK: Final = 8
"""Tokens of one block: short enough for a template's head, long enough to be few."""

Digest = bytes


def digests(tokens: Sequence[int], salt: bytes = b"") -> Iterator[Digest]:
    """The name of every complete block, from the start.

    Args:
        tokens: of the sequence.
        salt: another gives others.
    """
    chain = hashlib.blake2b(salt, digest_size=16)
    for end in range(BLOCK, len(tokens) + 1, BLOCK):
        chain.update(struct.pack(f"<{BLOCK}q", *tokens[end - BLOCK : end]))
        yield chain.digest()


def leading(names: Iterable[Digest], known: Container[Digest]) -> int:
    """How many of the names, from the first on without a gap, are known."""
    return sum(1 for _ in takewhile(known.__contains__, names))
