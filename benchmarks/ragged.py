"""Prompts that differ in length: padded together, split by length, or each alone.

    python -m benchmarks.ragged --data FOLDER --json OUT

Batches of sst2 validation sentences under the adapter's own scope: padded to the longest; as two
forwards, the shorter half and the longer half; as `dalorra.grouping` splits them; each alone.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.report import interleaved, print_table, write_json
from dalorra.adapter import bundled_adapter
from dalorra.grouping import cheapest_groups
from dalorra.predictive import Prediction
from dalorra.predictor import Predictor
from dalorra.prompts import Prompt
from training.tasks import load_examples, subsample

PLANS = ("padded", "two buckets", "grouped", "alone")


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
    price = predictor.forward_rows  # what the plans differ in
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
                "groups": len(cheapest_groups(rows, predictor.row_budget, price)),
            }
            timed = interleaved(_plans(predictor, prompts, price), options.repeats)
            results += [{"plan": plan, **about, **numbers} for plan, numbers in timed.items()]
    columns = ("plan", "batch", "padding", "groups", "median_ms", "ratio_to_single")
    print_table("Ragged prompts", results, columns)
    write_json(options.json, results)


def _plans(
    predictor: Predictor, prompts: Sequence[Prompt], price: int
) -> dict[str, Callable[[], list[Prediction]]]:
    """Each answers the prompts in order of length; `price` is the predictor's own of a forward."""
    ordered = sorted(prompts, key=lambda prompt: prompt.tokens)
    middle = len(ordered) // 2
    never = 10**6  # a price at which no batch is split

    def split(*parts: Sequence[Prompt], price: int = never) -> Callable[[], list[Prediction]]:
        def answer() -> list[Prediction]:
            predictor.forward_rows = price
            return [prediction for part in parts for prediction in predictor.predict(part)]

        return answer

    padded, buckets, grouped, alone = PLANS
    return {
        padded: split(ordered),
        buckets: split(ordered[:middle], ordered[middle:]),
        grouped: split(ordered, price=price),
        alone: split(*([prompt] for prompt in ordered)),
    }


if __name__ == "__main__":
    main()
