"""What a place of padding costs in attention, where joined prompts have theirs, in rows.

    python -m benchmarks.padding --json OUT

One prompt of T tokens among others of about a quarter of that, joined in one forward; against the
same with no long prompt, and with all of them about T long. The difference of the last two gives
the time of a row; the padding is what the first takes beyond its rows.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import interleaved, print_table, write_json
from dalorra.forward.batches import ForwardCost
from dalorra.predictor import Predictor
from dalorra.prompts import Prompt

ROWS = 2400  # about as many prompt tokens in a forward with long prompts alone
MOST = 16  # prompts
COLUMNS = ("tokens", "prompts", "rows", "padding", "us_per_row", "rows_per_place")


def main() -> None:
    """Runs the comparison and writes its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[60, 100, 200, 400, 1000])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/padding.json"))
    options = parser.parse_args()
    predictor = Predictor.load()
    predictor.row_budget = 10**9
    predictor.forward_cost = ForwardCost(10**9, 0.0)  # one forward for all
    results = [_measure(predictor, tokens, options.repeats) for tokens in options.tokens]
    print_table("Padding in attention", results, COLUMNS)
    write_json(options.json, results)


def _measure(predictor: Predictor, tokens: int, repeats: int) -> dict[str, Any]:
    count = max(2, min(MOST, ROWS // tokens))
    short = [tokens // 4 + i for i in range(count)]
    batches = {
        "short": _prompts(predictor, short),
        "mixed": _prompts(predictor, [*short[:-1], tokens]),
        "long": _prompts(predictor, [tokens - 1 - i for i in range(count)]),
    }
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


def _prompts(predictor: Predictor, lengths: list[int]) -> list[Prompt]:
    generator = torch.Generator().manual_seed(0)
    return [
        Prompt(
            tuple(torch.randint(100, 300, (length,), generator=generator).tolist()),
            predictor.tokenizer.cue_ids,
        )
        for length in lengths
    ]


if __name__ == "__main__":
    main()
