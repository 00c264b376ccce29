"""How sure a distribution is, from 0 to 1, by the formulas that clients of typed questions know.

They tell how concentrated a distribution is and nothing else: whether to believe an answer is what
its decision says.
"""

from collections.abc import Sequence


def choice_confidence(probabilities: Sequence[float]) -> float:
    """(m − 1/n) / (1 − 1/n), m the largest of n probabilities."""
    chance = 1 / len(probabilities)
    return _unit((max(probabilities) - chance) / (1 - chance))


def score_confidence(probabilities: Sequence[float]) -> float:
    """1 − Σ p_i |i − k| / D, k the most probable level and D the same of a uniform distribution.

    D is around the middle of the levels, where that sum is the smallest.
    """
    levels = range(len(probabilities))
    most = max(levels, key=probabilities.__getitem__)
    spread = sum(p * abs(level - most) for level, p in zip(levels, probabilities, strict=True))
    middle = (len(levels) - 1) / 2
    uniform = sum(abs(level - middle) for level in levels) / len(levels)
    return _unit(1 - spread / uniform)


def _unit(value: float) -> float:
    return min(max(value, 0.0), 1.0)
