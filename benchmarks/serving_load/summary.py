"""From what the clients saw to one line of the table."""

import statistics
from collections.abc import Sequence

import numpy as np

from benchmarks.serving_load.client import Outcome

PERCENTILES = (50, 95, 99)


def percentiles(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """Latencies of all rounds together, in milliseconds.

    Requests that were given up count with the time they had waited, so that they are not the
    ones that are forgotten; what they raise is then a lower bound.
    """
    seen = [ms for outcome in outcomes for ms in (*outcome.latencies_ms, *outcome.waited_ms)]
    if not seen:
        return {f"p{p}_ms": None for p in PERCENTILES}
    return {f"p{p}_ms": float(np.percentile(seen, p)) for p in PERCENTILES}


def throughput(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Median over the rounds, lowest and highest, in requests per second."""
    rates = [outcome.requests_per_s for outcome in outcomes]
    return {
        "requests_per_s": statistics.median(rates),
        "requests_per_s_low": min(rates),
        "requests_per_s_high": max(rates),
    }


def ratio(outcomes: Sequence[Outcome], references: Sequence[Outcome]) -> float | None:
    """Median over the rounds of the throughput in units of another's in the same round.

    None where the other answered nothing.
    """
    pairs = zip(outcomes, references, strict=True)
    ratios = [
        own.requests_per_s / other.requests_per_s for own, other in pairs if other.latencies_ms
    ]
    return statistics.median(ratios) if ratios else None


def summarise(
    outcomes: Sequence[Outcome], references: Sequence[Outcome] | None
) -> dict[str, float | int | None]:
    """One cell over its rounds; `references` are those of the looping server, if it took part."""
    return {
        "rounds": len(outcomes),
        "answered": sum(len(outcome.latencies_ms) for outcome in outcomes),
        "given_up": sum(len(outcome.waited_ms) for outcome in outcomes),
        **throughput(outcomes),
        **percentiles(outcomes),
        "ratio_to_fastapi": ratio(outcomes, references) if references else None,
    }
