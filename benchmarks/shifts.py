"""Inputs that an adapter for English film reviews was not made for, near and far."""

import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from benchmarks.languages import REVIEWS

NEAR: Final = ("rotten_tomatoes",)
FAR: Final = ("ag_news", "trec", "arc", "random", "languages", "shuffled")
"""What is reported. Reviews in other languages, and reviews with their words shuffled, are of the
right topic, but no English reviews."""

DEVELOPMENT: Final = ("winogrande", "boolq", "boolq_passage", "openbookqa")
"""What a score is chosen on, so that the shifts above stay unseen."""

_SPECIAL: Final = 50  # ids below are control tokens in the tokenizers of this family

_FILES: Final = {
    "ag_news": ("ag_news/validation", "text"),
    "trec": ("trec/train", "text"),
    "arc": ("arc_easy/test", "question"),
    "rotten_tomatoes": ("rotten_tomatoes/test", "text"),
    "winogrande": ("winogrande/validation", "sentence"),
    "boolq": ("boolq/validation", "question"),
    "boolq_passage": ("boolq_passage/train", "passage"),
    "openbookqa": ("openbookqa/test", "question_stem"),
}


def shifted(
    data: Path, usual: list[str], known: Iterable[str], tokenizer: Any, n: int, seed: int
) -> dict[str, list[str]]:
    """Name of each shift → at most n texts.

    Args:
        data: folder of `<task>/<split>.jsonl` files.
        usual: reviews whose words are shuffled.
        known: texts that the adapter was trained or calibrated on. Half of the other corpus of
            reviews consists of them, in another spelling; they are left out.
        tokenizer: a fast one, whose vocabulary random tokens are drawn from.
        n: texts of each; other languages are as many as were written.
        seed: draws them.
    """
    rng = random.Random(seed)
    seen = {_letters(text) for text in known}
    found: dict[str, list[str]] = {}
    for name in (*NEAR, *FAR, *DEVELOPMENT):
        if name in _FILES:
            texts = [text for text in _column(data, *_FILES[name]) if _letters(text) not in seen]
            found[name] = rng.sample(texts, min(n, len(texts)))
    found["languages"] = list(REVIEWS)
    words = [text.split() for text in usual[:n]]
    found["shuffled"] = [" ".join(rng.sample(some, len(some))) for some in words]
    size = tokenizer.get_vocab_size()
    lengths = [rng.randint(5, 30) for _ in range(n)]
    found["random"] = [
        tokenizer.decode([rng.randrange(_SPECIAL, size) for _ in range(length)])
        for length in lengths
    ]
    return found


def _column(data: Path, file: str, column: str) -> list[str]:
    lines = (data / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)[column] for line in lines]


def _letters(text: str) -> str:
    """What two spellings of one text have in common."""
    return re.sub(r"[^a-z0-9]", "", text.lower())
