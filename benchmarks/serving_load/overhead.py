"""What the server adds to the bare forward when one client asks one thing at a time."""

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import httpx

from benchmarks.serving_load.client import numbered
from dalorra.predictor import Predictor

_PAUSE_SECONDS = 0.03  # for the threads of one process to go to sleep before the other's turn
_FIRST_NUMBER = 900_000
_WARM_UP = 2


def overhead(
    predictor: Predictor, url: str, texts: Sequence[str], repeats: int
) -> dict[str, float | int]:
    """Times `Predictor.predict` and a request to the server in turn, on the same inputs.

    What is added is HTTP, JSON, the client's own work, tokenising, the queue and the threads.

    Args:
        predictor: with the adapter and settings of the server.
        url: of the server's `/predict`.
        texts: bodies of the inputs.
        repeats: pairs.

    Returns:
        medians of both and of the difference pair by pair, with its quartiles, in milliseconds;
        and the medians of the stages that the server itself timed, of which `rest_ms` is HTTP,
        JSON and the client.
    """
    bare, served = [], []
    stages: dict[str, list[float]] = defaultdict(list)
    with httpx.Client(trust_env=False, timeout=60) as http:
        for turn in range(repeats + _WARM_UP):
            number = _FIRST_NUMBER + turn
            text = numbered(texts[number % len(texts)], number)
            prompt = predictor.encode(text)
            bare.append(milliseconds(lambda prompt=prompt: predictor.predict([prompt])))
            timings: dict[str, float] = {}
            served.append(
                milliseconds(lambda text=text, into=timings: into.update(ask(http, url, text)))
            )
            for stage, taken in {**timings, "rest": served[-1] - sum(timings.values())}.items():
                stages[stage].append(taken)
    bare, served = bare[_WARM_UP:], served[_WARM_UP:]
    added = [whole - part for whole, part in zip(served, bare, strict=True)]
    low, median, high = statistics.quantiles(added, n=4)
    return {
        "repeats": repeats,
        "bare_ms": statistics.median(bare),
        "served_ms": statistics.median(served),
        "overhead_ms": median,
        "quartile_low_ms": low,
        "quartile_high_ms": high,
        **{f"{stage}_ms": statistics.median(taken[_WARM_UP:]) for stage, taken in stages.items()},
    }


def ask(http: httpx.Client, url: str, text: str) -> dict[str, float]:
    """Milliseconds of the stages of the answer, from its `Server-Timing`."""
    answer = http.post(url, json={"input": text}).raise_for_status()
    parts = (part.split(";dur=") for part in answer.headers["Server-Timing"].split(", "))
    return {stage: float(milliseconds) for stage, milliseconds in parts}


def milliseconds(run: Any) -> float:
    """That it took, after a pause."""
    time.sleep(_PAUSE_SECONDS)
    started = perf_counter()
    run()
    return 1e3 * (perf_counter() - started)
