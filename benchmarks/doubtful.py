"""Inputs that are in doubt by construction: two answers are right, or none is known.

*Ambiguous*: two inputs with different labels made one, so that the text is of the usual kind and
leaves open which label it has. *Unknown*: nothing in the text tells the label to who has learned
the task from its examples, because it is of another domain or language, or its words are none.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

Labelled = tuple[str, str]
"""A text and its label."""

Kinds = dict[str, list[str]]
"""How the texts were made → the texts."""


def ambiguous(task: str, usual: Sequence[Labelled], n: int, seed: int) -> Kinds:
    """Texts that two labels fit.

    Args:
        task: a key of `JOINS`.
        usual: labelled inputs of the task.
        n: texts of each way to join two of them.
        seed: draws the pairs.
    """
    rng = random.Random(seed)
    found: Kinds = {}
    for kind, join in JOINS[task].items():
        found[kind] = []
        while len(found[kind]) < n:
            (one, label), (other, another) = rng.sample(usual, 2)
            if label != another:
                found[kind].append(join(one, other))
    return found


def unknown(
    usual: Sequence[str], others: Sequence[str], foreign: Sequence[str], n: int, seed: int
) -> Kinds:
    """Texts that nothing in the task's examples tells the label of.

    Args:
        usual: inputs of the task, whose words are spoilt.
        others: inputs of other tasks.
        foreign: texts in other languages.
        n: texts of each kind.
        seed: draws them.
    """
    rng = random.Random(seed)
    return {
        "other domain": rng.sample(others, n),
        "other language": rng.sample(foreign, n),
        "invented words": [_by_word(text, _invented, rng) for text in rng.sample(usual, n)],
        "shuffled letters": [_by_word(text, _shuffled, rng) for text in rng.sample(usual, n)],
    }


def _by_word(text: str, change: Callable[[str, random.Random], str], rng: random.Random) -> str:
    return " ".join(change(word, rng) if word.isalnum() else word for word in text.split())


def _invented(word: str, rng: random.Random) -> str:
    """Consonants and vowels in turn, as long as the word."""
    kinds = ("bcdfghjklmnprstvwz", "aeiou")
    start = rng.randrange(2)
    letters = "".join(rng.choice(kinds[(start + i) % 2]) for i in range(len(word)))
    return letters.capitalize() if word[0].isupper() else letters


def _shuffled(word: str, rng: random.Random) -> str:
    return "".join(rng.sample(word, len(word)))


def _lowered(text: str) -> str:
    return text[0].lower() + text[1:]


def _reviews(link: str) -> Callable[[str, str], str]:
    return lambda one, other: one.strip(" .") + link + other.strip()


def _questions(link: str) -> Callable[[str, str], str]:
    return lambda one, other: one.strip(" ?.") + link + _lowered(other.strip())


def _headline(text: str) -> tuple[str, str]:
    """Headline and item; an item without a headline has none."""
    head, _, body = text.strip().partition(". ")
    return head, body.strip()


def _headlines(one: str, other: str) -> str:
    return f"{_headline(one)[0]}; {_headline(other)[0]}."


def _crossed(one: str, other: str) -> str:
    return f"{_headline(one)[0]}. {_headline(other)[1]}"


def _in_turn(one: str, other: str) -> str:
    """Both headlines, then both items."""
    (head, body), (other_head, other_body) = _headline(one), _headline(other)
    return f"{head}; {other_head}. {body} {other_body}"


JOINS: Final[Mapping[str, Mapping[str, Callable[[str, str], str]]]] = MappingProxyType(
    {
        "sst2": {
            "a , but b": _reviews(" , but "),
            "a , b": _reviews(" , "),
            "a . b": _reviews(" . "),
        },
        "trec": {
            "a and b ?": _questions(" and "),
            "a , or b ?": _questions(" , or "),
            "a ? b ?": lambda one, other: f"{one.strip()} {other.strip()}",
        },
        "ag_news": {
            "headlines": _headlines,
            "headline of one, text of the other": _crossed,
            "both items": _in_turn,
        },
    }
)
"""Task → ways to make one text of two; pairs are ordered, so either comes first."""
