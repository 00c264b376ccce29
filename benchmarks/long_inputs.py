"""Time and memory of one long input, by its tokens and by scope.

    python -m benchmarks.long_inputs --json OUT

Random tokens, one input at a time, nothing of it known from before. Memory is the most that the
process (on a GPU, PyTorch) had at any moment, above what it had with the model loaded and a short
input answered. Sizes run upwards, so that what one leaves behind hides nothing of the next.
"""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, get_args

import torch

from benchmarks.prompts import random_prompts
from benchmarks.report import arguments, print_table, write_json
from dalorra.adapter.directory import attached, bundled_adapter, read_adapter
from dalorra.base.model import BaseModel, load_base_model
from dalorra.forward.arranged import ArrangedBase, arrange
from dalorra.forward.batches import DEFAULT_ROW_BUDGET
from dalorra.predictor import Predictor
from dalorra.prompts import Scope

SHORT = 40
COLUMNS = ("scope", "tokens", "samples", "row_budget", "seconds", "memory_mib", "repeats")
_STATUS = Path("/proc/self/status")


def main() -> None:
    """Runs the measurement and writes its JSON."""
    parser = arguments(__doc__, "long_inputs")
    parser.add_argument("--adapter", type=Path, default=bundled_adapter())
    parser.add_argument("--base-model", help="the one the adapter was trained on by default")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1000, 2000, 4000, 8000])
    parser.add_argument("--scopes", nargs="+", default=list(get_args(Scope)))
    parser.add_argument("--row-budget", type=int, default=DEFAULT_ROW_BUDGET)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    name = options.base_model or read_adapter(options.adapter).manifest.base_model.name
    base = load_base_model(name)
    arranged, results = arrange(base.model), []
    for scope in options.scopes:
        predictor = under(scope, options.adapter, base, arranged, options.row_budget)
        results += measure(predictor, sorted(options.tokens), options.repeats)
    print_table("One long input", results, COLUMNS)
    write_json(options.json, results)


def under(
    scope: Scope, folder: Path, base: BaseModel, arranged: ArrangedBase, row_budget: int
) -> Predictor:
    """The adapter as if it had been trained under this scope."""
    adapter = read_adapter(folder)
    manifest = adapter.manifest.model_copy(update={"scope": scope})
    other = replace(adapter, manifest=manifest, policy=None, novelty=None)
    with attached(other, base) as model:
        return Predictor.of(other, base, model, row_budget=row_budget, arranged=arranged)


def measure(predictor: Predictor, sizes: list[int], repeats: int) -> list[dict[str, Any]]:
    """One line for each number of tokens, cue included."""
    cue = predictor.tokenizer.cue_ids
    lengths = [tokens - len(cue) for tokens in (SHORT, *sizes)]
    short, *prompts = random_prompts(lengths, torch.Generator().manual_seed(0), cue, 300)
    predictor.predict([short])
    gc.collect()  # what came before must not be freed meanwhile
    with_model, lines = memory(), []
    for tokens, prompt in zip(sizes, prompts, strict=True):
        forget_peak()
        seconds = [
            _timed(lambda prompt=prompt: predictor.predict([prompt])) for _ in range(repeats)
        ]
        lines.append(
            {
                "scope": predictor.scope,
                "tokens": tokens,
                "samples": predictor.samples,
                "row_budget": predictor.batching.budget,
                "seconds": median(seconds),
                "memory_mib": (peak() - with_model) / 2**20,
                "repeats": repeats,
            }
        )
    return lines


def memory() -> int:
    """Bytes that are in use."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else _status("VmRSS")


def peak() -> int:
    """The most since `forget_peak`."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def forget_peak() -> None:
    """The peak is what is in use."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident size


def _status(name: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _timed(run: Callable[[], object]) -> float:
    begin = perf_counter()
    run()
    return perf_counter() - begin


if __name__ == "__main__":
    main()
