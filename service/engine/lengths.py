"""How many rows an input will take, before it is tokenised."""

from typing import Any, Final

_DECAY: Final = 0.98  # weight of the past: about the last fifty inputs

_CHARACTERS, _ROWS, _ROWS_PER_CHARACTER = 200, 110, 0.25
"""What is supposed before anything is known: English, a short template, a short cue ten times."""

_LONG = 2_048


class Lengths:
    """Rows by characters: a straight line through recent inputs, by least squares.

    What is longer than any before is taken for as long as the longest: where inputs are cut, the
    line goes on and the rows do not.
    """

    def __init__(self) -> None:
        self._weight = 1.0
        self._characters, self._rows = float(_CHARACTERS), float(_ROWS)  # means
        self._spread = float(_CHARACTERS**2)  # variance of the characters
        self._together = self._spread * _ROWS_PER_CHARACTER  # covariance with the rows
        self._longest = _LONG

    def rows(self, characters: int) -> int:
        """The estimate."""
        slope = self._together / self._spread if self._spread else 0.0
        line = self._rows + slope * (characters - self._characters)
        return min(max(round(line), 0), self._longest)

    def learn(self, characters: int, rows: int) -> None:
        """Of an input that was tokenised."""
        self._weight = _DECAY * self._weight + 1.0
        step = 1.0 / self._weight
        off, over = characters - self._characters, rows - self._rows
        self._characters += step * off
        self._rows += step * over
        self._spread = (1.0 - step) * (self._spread + step * off * off)
        self._together = (1.0 - step) * (self._together + step * off * over)
        self._longest = max(self._longest, rows)


def characters_of(value: Any) -> int:
    """Of an input, those around its texts included."""
    return len(value if isinstance(value, str) else repr(value))
