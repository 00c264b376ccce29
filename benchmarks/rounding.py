"""How far an answer depends on its batch, and on the precision, by rounding alone.

    python -m benchmarks.rounding --data FOLDER --json OUT

sst2 validation sentences, each alone and in batches, in float32 and in bfloat16, with the bundled
adapter and its policy: differences of probability and variance, other labels, other decisions, and
answers that are accepted in one way and have another label in the other.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import arguments, print_table, write_json
from dalorra.adapter.directory import bundled_adapter, read_adapter
from dalorra.decision.policy import Decision, Policy
from dalorra.decision.predictive import Prediction
from dalorra.predictor import Predictor
from dalorra.prompts import Prompt
from training.tasks import load_examples, subsample

COLUMNS = (
    "one",
    "other",
    "p_median",
    "p_95",
    "p_most",
    "variance_most",
    "other_label",
    "other_decision",
    "accepted_other_label",
)
UNBOUNDED = 10**9  # rows: no batch is split


def main() -> None:
    """Runs the comparison and writes its JSON."""
    parser = arguments(__doc__, "rounding")
    parser.add_argument("--adapter", type=Path, default=bundled_adapter())
    parser.add_argument("--data", type=Path, help="folder with sst2/validation.jsonl; the hub")
    parser.add_argument("--examples", type=int, default=872)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    examples = subsample(load_examples("sst2", "validation", options.data), options.examples, 0)
    policy = read_adapter(options.adapter).policy or Policy.never()
    answers: dict[str, list[Prediction]] = {}
    for dtype in ("float32", "bfloat16"):
        predictor = Predictor.load(options.adapter, dtype=dtype)
        prompts = [predictor.encode(example.input) for example in examples]
        for size in (1, options.batch):
            way = f"{dtype}, {'alone' if size == 1 else f'batches of {size}'}"
            answers[way] = in_batches(predictor, prompts, size)
    results = [
        {
            "one": one,
            "other": other,
            **differences(answers[one], answers[other], policy),
            "examples": len(examples),
            "samples": predictor.samples,
        }
        for one, other in combinations(answers, 2)
    ]
    print_table("Differences by rounding", results, COLUMNS)
    write_json(options.json, results)


def in_batches(predictor: Predictor, prompts: Sequence[Prompt], size: int) -> list[Prediction]:
    """Answers of `size` prompts to a forward."""
    predictor.batching = replace(predictor.batching, budget=UNBOUNDED, price=UNBOUNDED)
    parts = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    return [answer for part in parts for answer in predictor.predict(part)]


def differences(
    found: Sequence[Prediction], expected: Sequence[Prediction], policy: Policy
) -> dict[str, Any]:
    """Of probability and variance over n answers, and how many labels and decisions differ."""
    pairs = list(zip(found, expected, strict=True))
    p = [
        max(abs(a.probabilities[k] - b.probabilities[k]) for k in a.probabilities) for a, b in pairs
    ]
    accepted = [
        Decision.ACCEPT in (policy.decide(a).decision, policy.decide(b).decision) for a, b in pairs
    ]
    other_label = [a.label != b.label for a, b in pairs]
    return {
        "p_median": float(np.median(p)),
        "p_95": float(np.quantile(p, 0.95)),
        "p_most": max(p),
        "variance_most": max(abs(a.variance - b.variance) for a, b in pairs),
        "other_label": sum(other_label),
        "other_decision": sum(
            policy.decide(a).decision != policy.decide(b).decision for a, b in pairs
        ),
        "accepted_other_label": sum(x and y for x, y in zip(accepted, other_label, strict=True)),
    }


if __name__ == "__main__":
    main()
