"""One text in several spellings: what it says stays, how it is typed changes.

Corpora are often typed in one way, all in lower case with spaces around each mark, say, and later
inputs in another. A novelty score that is fitted on these variants does not call an input novel for
its typing alone, see `training.novelty`.
"""

import json
import re
from collections.abc import Callable
from hashlib import sha256
from typing import Final, Literal

from training.tasks import Example

_STRAY_SPACE = re.compile(
    r" +(?=[,.;:!?)\]}]|''|n't\b|'(?:s|m|d|re|ve|ll)\b)|(?<=[(\[{]) +|(?<=``) +"
)
Augment = Literal["orthography", "none"]
"""Whether a text is taken in all spellings, or as it is."""

_CLOSING = " .!…"
_ENOUGH = ("?", "？", "。", "！")  # a text that ends in one of these keeps it


def natural_spacing(text: str) -> str:
    """Joins what a Treebank tokenizer took apart: `it 's odd , so` → `it's odd, so`."""
    return _STRAY_SPACE.sub("", text).replace("``", '"').replace("''", '"')


def lower(text: str) -> str:
    """All in lower case, no closing mark."""
    return _closed(natural_spacing(text).lower(), "")


def sentence(text: str, mark: str = ".") -> str:
    """A capital at its head and for a lone i, closed with a mark."""
    capital = re.sub(r"[^\W\d_]", lambda letter: letter[0].upper(), natural_spacing(text), count=1)
    return _closed(re.sub(r"\bi\b(?!\.)", "I", capital), mark)


def title(text: str) -> str:
    """A capital at the head of every word, no closing mark."""
    capitals = re.sub(
        r"(?<![\w'])[^\W\d_]", lambda letter: letter[0].upper(), natural_spacing(text)
    )
    return _closed(capitals, "")


def _closed(text: str, mark: str) -> str:
    """The text with another closing mark; a text of closing marks alone stays as it is."""
    stripped = text.rstrip(_CLOSING)
    if not stripped:
        return text
    return stripped if stripped.endswith(_ENOUGH) else stripped + mark


_SPELLINGS: Final[tuple[Callable[[str], str], ...]] = (
    str,
    lower,
    sentence,
    lambda text: sentence(text, "!"),
    lambda text: sentence(text, ""),
    title,
)

VARIANTS: Final = len(_SPELLINGS)
"""Number of spellings of each text, the one that is given among them."""


def spellings(example: Example) -> list[Example]:
    """The example as it is, then with all of its fields spelt in `VARIANTS - 1` other ways."""
    return [
        Example({name: spelt(text) for name, text in example.input.items()}, example.label)
        for spelt in _SPELLINGS
    ]


def one_spelling(example: Example) -> Example:
    """One of the example's `spellings`, picked by a hash of its input."""
    content = json.dumps(["spelling", sorted(example.input.items())])
    return spellings(example)[int.from_bytes(sha256(content.encode()).digest()) % VARIANTS]
