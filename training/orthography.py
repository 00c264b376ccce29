"""One text in several spellings: what it says stays, how it is typed changes.

Corpora are often typed in one way, all in lower case with spaces around each mark, say, and later
inputs in another. A novelty score that is fitted on these variants does not call an input novel for
its typing alone, see `training.novelty`.
"""

import json
import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Final, Literal

from dalorra.errors import ConfigError
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


SPELLINGS: Final[Mapping[str, Callable[[str], str]]] = {
    "given": str,
    "lower": lower,
    "sentence": sentence,
    "exclamation": lambda text: sentence(text, "!"),
    "open": lambda text: sentence(text, ""),
    "title": title,
}
"""Ways to spell a text, the one that it is given in among them."""

VARIANTS: Final = len(SPELLINGS)
"""Number of them."""

MIXED: Final = "mixed"
"""Each example in one of the `SPELLINGS`."""


def spellings(example: Example) -> list[Example]:
    """The example as it is, then with all of its fields spelt in `VARIANTS - 1` other ways."""
    return [
        example.saying({name: spelt(text) for name, text in example.texts.items()})
        for spelt in SPELLINGS.values()
    ]


def one_spelling(example: Example) -> Example:
    """One of the example's `spellings`, picked by a hash of its input."""
    content = json.dumps(["spelling", sorted(example.content.items())])
    return spellings(example)[int.from_bytes(sha256(content.encode()).digest()) % VARIANTS]


def in_spelling(example: Example, name: str) -> Example:
    """The example in the spelling of that name, one of `SPELLINGS` or `MIXED`.

    Raises:
        ConfigError: there is no such spelling.
    """
    if name == MIXED:
        return one_spelling(example)
    if name not in SPELLINGS:
        known = ", ".join((*SPELLINGS, MIXED))
        raise ConfigError(f"no spelling is called {name!r}: there are {known}")
    return spellings(example)[list(SPELLINGS).index(name)]


def words(example: Example) -> Example:
    """The letters and digits alone, in upper case: the same for all spellings of an example."""
    return example.saying(
        {name: re.sub(r"\W", "", text.upper()) for name, text in example.texts.items()}
    )
