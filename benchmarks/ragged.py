"""Prompts that differ in length: one padded forward, or two of nearer lengths each.

    python -m benchmarks.ragged --data FOLDER --json OUT

Batches of sst2 validation sentences under the adapter's own scope, sorted by length: padded to the
longest, or as two forwards, the shorter half and the longer half.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import interleaved, print_table, write_json
from dalorra.predictor import Predictor, bundled_adapter
from dalorra.prompts import Prompt
from training.tasks import load_examples, subsample

PLANS = ("padded", "two buckets")


def main() -> None:
    """Runs the comparison and writes its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--adapter", type=Path, default=bundled_adapter())
    parser.add_argument("--data", type=Path, help="folder with sst2/validation.jsonl; the hub")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--batches", type=int, default=3, help="different ones of each size")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/ragged.json"))
    options = parser.parse_args()

    predictor = Predictor.load(options.adapter)
    examples = load_examples("sst2", "validation", options.data)
    results = []
    for batch in options.batch:
        for number in range(options.batches):
            chosen = subsample(examples, batch, seed=number)
            prompts = [predictor.encode(dict(example.input)) for example in chosen]
            rows = [predictor.packed_rows(prompt) for prompt in prompts]
            about = {
                "batch": batch,
                "number": number,
                "repeats": options.repeats,
                "padding": 1 - sum(rows) / (batch * max(rows)),
            }
            timed = interleaved(_plans(predictor, prompts), options.repeats)
            results += [{"plan": plan, **about, **numbers} for plan, numbers in timed.items()]
    columns = ("plan", "batch", "padding", "median_ms", "ratio_to_single")
    print_table("Ragged prompts", results, columns)
    write_json(options.json, results)


def _plans(predictor: Predictor, prompts: Sequence[Prompt]) -> dict[str, Callable[[], Any]]:
    ordered = sorted(prompts, key=lambda prompt: prompt.tokens)
    middle = len(ordered) // 2
    halves = ordered[:middle], ordered[middle:]
    padded, buckets = PLANS
    return {
        padded: lambda: predictor.predict(ordered),
        buckets: lambda: [predictor.predict(half) for half in halves],
    }


if __name__ == "__main__":
    main()
