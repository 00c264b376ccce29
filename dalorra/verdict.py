"""What is decided about an answer, and how its numbers are put into words."""

from dataclasses import dataclass
from enum import StrEnum


class Decision(StrEnum):
    """What to do with an answer."""

    ACCEPT = "accept"
    ESCALATE = "escalate"
    CLARIFY = "clarify"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision and the one sentence that explains it."""

    decision: Decision
    reason: str


def told_apart(value: float, threshold: float) -> tuple[str, str]:
    """Both numbers with three significant digits, or as many as show which is larger."""
    digits = 3
    while value != threshold and f"{value:.{digits}g}" == f"{threshold:.{digits}g}":
        digits += 1  # ends at 17 digits, where different floats have different texts
    return f"{value:.{digits}g}", f"{threshold:.{digits}g}"
