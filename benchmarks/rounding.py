"""How far an answer depends on its batch, and on the precision, by rounding alone.

    python -m benchmarks.rounding --data FOLDER --json OUT

sst2 validation sentences, each alone and in batches, with the bundled
adapter; and the batches in bfloat16 against float32.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import arguments, print_table, write_json
from dalorra.adapter.directory import bundled_adapter
from dalorra.predictor import Predictor
from dalorra.prompts import Prompt
from training.tasks import load_examples, subsample

COLUMNS = ("dtype", "compared", "p_median", "p_95", "p_most", "variance_most", "other_label")
UNBOUNDED = 10**9  # rows: no batch is split


def main() -> None:
    """Runs the comparison and writes its JSON."""
    parser = arguments(__doc__, "rounding")
    parser.add_argument("--adapter", type=Path, default=bundled_adapter())
    parser.add_argument("--data", type=Path, help="folder with sst2/validation.jsonl; the hub")
    parser.add_argument("--examples", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    examples = subsample(load_examples("sst2", "validation", options.data), options.examples, 0)
    results, batched = [], {}
    for dtype in ("float32", "bfloat16"):
        predictor = Predictor.load(options.adapter, dtype=dtype)
        prompts = [predictor.encode(example.input) for example in examples]
        alone = in_batches(predictor, prompts, 1)
        batched[dtype] = in_batches(predictor, prompts, options.batch)
        sizes = {"examples": len(examples), "batch": options.batch, "samples": predictor.samples}
        results.append(
            {"dtype": dtype, "compared": "alone, batch", **differences(alone, batched[dtype])}
            | sizes
        )
    between = differences(batched["bfloat16"], batched["float32"])
    results.append({"dtype": "bfloat16", "compared": "batch, float32", **between} | sizes)
    print_table("Differences by rounding", results, COLUMNS)
    write_json(options.json, results)


def in_batches(predictor: Predictor, prompts: Sequence[Prompt], size: int) -> Tensor:
    """`[n, M, K]` probabilities, `size` prompts to a forward."""
    predictor.batching = replace(predictor.batching, budget=UNBOUNDED, price=UNBOUNDED)
    parts = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    return torch.cat([predictor.posterior_samples(part).by_sample for part in parts])


def differences(found: Tensor, expected: Tensor) -> dict[str, Any]:
    """Of mean probability and of variance over M, over n examples, and how many labels differ."""
    p = (found.mean(dim=1) - expected.mean(dim=1)).abs().amax(dim=-1)
    variance = (found.var(dim=1, correction=0) - expected.var(dim=1, correction=0)).abs().max()
    other = found.mean(dim=1).argmax(dim=-1) != expected.mean(dim=1).argmax(dim=-1)
    return {
        "p_median": float(p.median()),
        "p_95": float(p.quantile(0.95)),
        "p_most": float(p.max()),
        "variance_most": float(variance),
        "other_label": int(other.sum()),
    }


if __name__ == "__main__":
    main()
