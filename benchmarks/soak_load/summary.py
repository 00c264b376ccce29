"""From what clients and server saw to windows of time, and to what held."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.soak_load.server import Reading
from benchmarks.soak_load.traffic import Client, Outcome

REFUSED = (413, 429)
LATE_REFUSAL_SECONDS = 1.0
"""A refusal that takes longer was an acceptance first."""


class Capacity(NamedTuple):
    """What a server does where there is always more to do."""

    inputs_per_s: float
    rows_per_s: float


def window(
    outcomes: Sequence[Outcome], begin: Reading, end: Reading, capacity: Capacity
) -> dict[str, Any]:
    """What ended between two readings."""
    seen = [one for one in outcomes if begin.at <= one.ended < end.at]
    seconds = end.at - begin.at
    answered = [one for one in seen if one.status == 200]
    goodput = sum(one.inputs for one in answered) / seconds
    return {
        "measure": "window",
        "begin_s": begin.at,
        "seconds": seconds,
        "answered_inputs_per_s": goodput,
        "of_capacity": goodput / capacity.inputs_per_s,
        "rows_per_s": (end.rows - begin.rows) / seconds,
        "refused_requests": sum(one.status in REFUSED for one in seen),
        "timed_out": sum(one.status == 504 for one in seen),
        "other": sum(one.status not in (200, 504, *REFUSED) for one in seen),
        "p50_s": _percentile(answered, 50),
        "p99_s": _percentile(answered, 99),
        "memory_mib": end.memory_mib,
        "cache_mib": end.cache_mib,
        "queue_rows": end.queue_rows,
        "metrics_s": end.seconds,
    }


def memory_grown(readings: Sequence[Reading]) -> float:
    """MiB from when the prefix cache was full, or as full as it became, to the end."""
    full = 0.99 * max(one.cache_mib for one in readings)
    filled = next(one for one in readings if one.cache_mib >= full)
    return readings[-1].memory_mib - filled.memory_mib


def of_client(client: Client, outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """What one key got of what it asked for."""
    own = [one for one in outcomes if one.client == client.name]
    answered = [one for one in own if one.status == 200]
    asked = sum(one.inputs for one in own)
    return {
        "measure": "client",
        "client": client.name,
        "asked_inputs_per_s": asked / seconds,
        "answered_inputs_per_s": sum(one.inputs for one in answered) / seconds,
        "answered_share": sum(one.inputs for one in answered) / max(asked, 1),
        "p50_s": _percentile(answered, 50),
        "p99_s": _percentile(answered, 99),
    }


def in_all(
    outcomes: Sequence[Outcome],
    readings: Sequence[Reading],
    *,
    capacity: Capacity,
    deadline: float,
    seconds: float,
) -> dict[str, Any]:
    """The whole flood, once the last request has ended.

    Args:
        outcomes: of the flood.
        readings: before it, meanwhile, and after it.
        capacity: of the server.
        deadline: seconds for an answer.
        seconds: that requests came for.
    """
    first, *_, last = readings
    coming = [one for one in readings if one.at - first.at < seconds]
    rows_per_s = (coming[-1].rows - first.rows) / max(coming[-1].at - first.at, 1e-9)
    answered = [one for one in outcomes if one.status == 200]
    refused = [one for one in outcomes if one.status in REFUSED]
    at_once = [one for one in refused if one.seconds < LATE_REFUSAL_SECONDS]
    # The queue is empty before and drains after the requests came: what is answered in its last
    # deadline is left out.
    steady = [one.inputs for one in answered if one.ended - first.at < seconds]
    counted = {
        outcome: ended - first.requests.get(outcome, 0.0)
        for outcome, ended in last.requests.items()
    }
    statuses = Counter(one.error_type or str(one.status) for one in outcomes)
    return {
        "measure": "soak",
        "seconds": seconds,
        "deadline_s": deadline,
        "capacity_inputs_per_s": capacity.inputs_per_s,
        "capacity_rows_per_s": capacity.rows_per_s,
        "asked_inputs_per_s": sum(one.inputs for one in outcomes) / seconds,
        "answered_inputs_per_s": sum(steady) / seconds,
        "of_capacity": sum(steady) / seconds / capacity.inputs_per_s,
        "rows_of_capacity": rows_per_s / capacity.rows_per_s,
        "requests": len(outcomes),
        "ends": dict(statuses),
        "answered": len(answered),
        "refused_at_once": len(at_once),
        "refused_late": len(refused) - len(at_once),
        "timed_out": sum(one.status == 504 for one in outcomes),
        "counted_by_server": sum(counted.values()),
        "lost": len(outcomes) - sum(counted.values()),
        "p50_s": _percentile(answered, 50),
        "p99_s": _percentile(answered, 99),
        "longest_s": max((one.seconds for one in answered), default=None),
        "refusal_p50_ms": _milliseconds(at_once, 50),
        "refusal_p99_ms": _milliseconds(at_once, 99),
        "queue_rows_left": last.queue_rows,
        "memory_mib": last.memory_mib,
        "memory_grown_mib": memory_grown(readings),
    }


def _percentile(outcomes: Sequence[Outcome], percent: float) -> float | None:
    times = [one.seconds for one in outcomes]
    return float(np.percentile(times, percent)) if times else None


def _milliseconds(outcomes: Sequence[Outcome], percent: float) -> float | None:
    seconds = _percentile(outcomes, percent)
    return None if seconds is None else 1e3 * seconds
