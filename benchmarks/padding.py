"""What a place of padding costs in attention, where joined prompts have theirs, in rows.

    python -m benchmarks.padding --json OUT

One prompt of T tokens among others of about a quarter of that, joined in one forward; against the
same with no long prompt, and with all of them about T long. The difference of the last two gives
the time of a row; the padding is what the first takes beyond its rows.
"""

from dataclasses import replace
from typing import Any

import torch

from benchmarks.prompts import random_prompts
from benchmarks.report import arguments, interleaved, print_table, write_json
from dalorra.predictor import Predictor

ROWS = 2400  # about as many prompt tokens in a forward with long prompts alone
MOST = 16  # prompts
COLUMNS = ("tokens", "prompts", "rows", "padding", "us_per_row", "rows_per_place")


def main() -> None:
    """Runs the comparison and writes its JSON."""
    parser = arguments(__doc__, "padding")
    parser.add_argument("--tokens", type=int, nargs="+", default=[60, 100, 200, 400, 1000])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    predictor = Predictor.load()
    predictor.batching = replace(predictor.batching, budget=10**9, price=10**9)  # one forward
    results = [measure(predictor, tokens, options.repeats) for tokens in options.tokens]
    print_table("Padding in attention", results, COLUMNS)
    write_json(options.json, results)


def measure(predictor: Predictor, tokens: int, repeats: int) -> dict[str, Any]:
    count = max(2, min(MOST, ROWS // tokens))
    short = [tokens // 4 + i for i in range(count)]
    lengths = {
        "short": short,
        "mixed": [*short[:-1], tokens],
        "long": [tokens - 1 - i for i in range(count)],
    }
    generator, cue = torch.Generator().manual_seed(0), predictor.tokenizer.cue_ids
    batches = {name: random_prompts(own, generator, cue, 300) for name, own in lengths.items()}
    rows = {
        name: sum(predictor.packed_rows(prompt) for prompt in prompts)
        for name, prompts in batches.items()
    }
    plans = {
        name: (lambda prompts=prompts: predictor.predict(prompts))
        for name, prompts in batches.items()
    }
    ms = {name: found["median_ms"] for name, found in interleaved(plans, repeats).items()}
    per_row = (ms["long"] - ms["short"]) / (rows["long"] - rows["short"])
    extra = ms["mixed"] - ms["short"] - per_row * (rows["mixed"] - rows["short"])
    padding = (count - 1) * tokens - sum(short[:-1])
    return {
        "tokens": tokens,
        "prompts": count,
        "rows": rows["mixed"],
        "padding": padding,
        "us_per_row": 1e3 * per_row,
        "rows_per_place": extra / padding / per_row,
        "repeats": repeats,
    }


if __name__ == "__main__":
    main()
