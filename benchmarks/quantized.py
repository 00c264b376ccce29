"""What a base model in 8 or 4 bit costs and saves, here with bitsandbytes on this device.

    python -m benchmarks.quantized --json OUT

Random tokens, one input at a time, M samples of the bundled adapter; the ways alternate, so that
whatever else the machine does meets all of them. The weights are counted as they are stored; on a
CPU unquantised ones of bfloat16 are kept a second time, laid out for the processor.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, get_args

import torch

from benchmarks.prompts import random_prompts
from benchmarks.report import arguments, print_table, write_json
from dalorra.adapter.directory import bundled_adapter, read_adapter
from dalorra.base.model import BaseModel, load_base_model
from dalorra.base.quantized import Quantize
from dalorra.predictor import Predictor
from dalorra.shared_base import SharedBase

COLUMNS = ("quantize", "tokens", "seconds", "fastest", "slowest", "weights_mib", "repeats")


def main() -> None:
    """Runs the measurement and writes its JSON."""
    parser = arguments(__doc__, "quantized")
    parser.add_argument("--adapter", type=Path, default=bundled_adapter())
    parser.add_argument("--base-model", help="the one the adapter was trained on by default")
    parser.add_argument("--quantize", nargs="+", default=list(get_args(Quantize)))
    parser.add_argument("--tokens", type=int, nargs="+", default=[40, 200])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    name = options.base_model or read_adapter(options.adapter).manifest.base_model.name
    ways: dict[str, tuple[Predictor, float]] = {}
    for way in options.quantize:
        base = load_base_model(name, quantize=way)
        shared = SharedBase(base)
        ways[way] = shared.bind(shared.read(options.adapter)), stored(base)
    results = [line for tokens in options.tokens for line in measure(ways, tokens, options.repeats)]
    print_table("Quantised bases", results, COLUMNS)
    write_json(options.json, results)


def stored(base: BaseModel) -> float:
    """MiB of the weights."""
    return sum(weight.nbytes for weight in base.model.parameters()) / 2**20


def measure(
    ways: dict[str, tuple[Predictor, float]], tokens: int, repeats: int
) -> list[dict[str, Any]]:
    """One line for each way, of inputs with so many tokens, cue included."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(-1, repeats):  # the first only warms up
        for way, (predictor, _) in ways.items():
            cue = predictor.tokenizer.cue_ids
            generator = torch.Generator().manual_seed(repeat + 1)
            (prompt,) = random_prompts([tokens - len(cue)], generator, cue, 300)
            took = _timed(partial(predictor.predict, [prompt]))
            if repeat >= 0:
                seconds[way].append(took)
    return [
        {
            "quantize": way,
            "tokens": tokens,
            "seconds": median(seconds[way]),
            "fastest": min(seconds[way]),
            "slowest": max(seconds[way]),
            "weights_mib": weights,
            "repeats": repeats,
        }
        for way, (_, weights) in ways.items()
    ]


def _timed(run: Callable[[], object]) -> float:
    begin = perf_counter()
    run()
    return perf_counter() - begin


if __name__ == "__main__":
    main()
