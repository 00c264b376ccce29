"""How many rows an input will take, before it is tokenised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from dalorra.questions import Asked

if TYPE_CHECKING:
    from service.engine.interfaces import Input, Predictor

_DECAY: Final = 0.98  # weight of the past: about the last fifty inputs

_SUPPOSED: Final = np.array([60.0, 0.25, 0.25])
"""Rows of an empty input, of a character that is read and of one of an option, before anything is
known: English, a short template, a short cue ten times."""

_DOUBT: Final = np.diag([0.1, 100.0**2, 20.0**2])
"""How much is learnt from one input before that is forgotten: the Gram matrix of such inputs."""

_LONG: Final = 2_048


class Size(NamedTuple):
    """What is known of an input before it is tokenised.

    Attributes:
        characters: that are read for it, of a state its part.
        options: characters of the options, whose rows may be there once for each sample.
    """

    characters: int
    options: int = 0


def sizes_of(asked: Sequence[tuple[Predictor, Input]]) -> list[Size]:
    """Of inputs that are asked together."""
    sizes: list[Size] = []
    questions = Counter((who, one.state) for who, one in asked if isinstance(one, Asked))
    for predictor, value in asked:
        if isinstance(value, Asked):
            question = value.question
            options = sum(len(one.name) + len(one.description) for one in question.options)
            read = round(len(value.state) / questions[predictor, value.state])
            sizes.append(Size(read + len(question.instructions) + options, options))
        else:
            texts = value.values() if isinstance(value, Mapping) else [value]
            sizes.append(Size(sum(map(len, texts))))
    return sizes


class Lengths:
    """Rows of inputs, of each predictor by its recent ones."""

    def __init__(self) -> None:
        self._lines: WeakKeyDictionary[Predictor, _Line] = WeakKeyDictionary()

    def rows(self, predictor: Predictor, size: Size) -> int:
        """The estimate; at least 1."""
        return self._lines.setdefault(predictor, _Line()).rows(size)

    def learn(self, predictor: Predictor, size: Size, rows: int, *, cut: bool) -> None:
        """Of an input that was tokenised, and `cut` where it was too long."""
        self._lines.setdefault(predictor, _Line()).learn(size, rows, cut=cut)


class _Line:
    """Rows by size: a plane through recent inputs, by least squares.

    What is longer than any before is taken for as long as the longest: where inputs are cut, the
    plane goes on and the rows do not.
    """

    def __init__(self) -> None:
        self._gram = np.zeros_like(_DOUBT)
        self._moment = np.zeros_like(_SUPPOSED)
        self._weights = _SUPPOSED
        self._longest = _LONG

    def rows(self, size: Size) -> int:
        return min(max(round(float(self._weights @ (1, *size))), 1), self._longest)

    def learn(self, size: Size, rows: int, *, cut: bool) -> None:
        if cut:
            self._longest = rows
            return
        seen = np.array([1.0, *size])
        self._gram = _DECAY * self._gram + np.outer(seen, seen)
        self._moment = _DECAY * self._moment + rows * seen
        self._weights = np.linalg.solve(self._gram + _DOUBT, self._moment + _DOUBT @ _SUPPOSED)
        self._longest = max(self._longest, rows)
