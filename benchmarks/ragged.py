"""Prompts that differ in length: joined in one forward, split where that is cheaper, or each alone.

    python -m benchmarks.ragged --data FOLDER --json OUT

Batches of sst2 validation sentences, joined to one sequence without padding as
`forward.llama.layout` does it: all in one forward; in as many as `Batching.forwards` makes of them;
and each prompt alone. With the bundled adapter, or, for a GPU, with `--shape llama-3.1-8b`: random
weights of that shape.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.plans import MODULES, llama_8b
from benchmarks.report import arguments, interleaved, print_table, write_json
from dalorra.adapter.layer import attach, lora_config
from dalorra.adapter.manifest import Card
from dalorra.decision.policy import Policy
from dalorra.decision.predictive import Prediction
from dalorra.forward.batches import Batching
from dalorra.posteriors import RankMasks
from dalorra.posteriors.bank import BankSpec
from dalorra.predictor import Predictor
from dalorra.prompts import Prompt
from training.tasks import load_examples, subsample

UNBOUNDED = 10**6  # rows; at this price of a forward no batch is split


def main() -> None:
    """Runs the comparison and writes its JSON."""
    parser = arguments(__doc__, "ragged")
    parser.add_argument("--data", type=Path, help="folder with sst2/validation.jsonl; the hub")
    parser.add_argument("--shape", choices=["default", "llama-3.1-8b"], default="default")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--batches", type=int, default=3, help="different ones of each size")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    predictor = _of_shape(options.shape)
    batching = predictor.batching
    examples = load_examples("sst2", "validation", options.data)
    results = []
    for batch in options.batch:
        for number in range(options.batches):
            chosen = subsample(examples, batch, seed=number)
            prompts = [predictor.encode(example.texts) for example in chosen]
            rows = [predictor.packed_rows(prompt) for prompt in prompts]
            about = {
                "shape": options.shape,
                "batch": batch,
                "number": number,
                "repeats": options.repeats,
                "padding": 1 - sum(rows) / (batch * max(rows)),
                "groups": len(batching.forwards(rows)),
            }
            timed = interleaved(plans(predictor, prompts, batching), options.repeats)
            results += [{"plan": plan, **about, **numbers} for plan, numbers in timed.items()]
    columns = ("plan", "batch", "padding", "groups", "median_ms", "ratio_to_single")
    print_table("Ragged prompts", results, columns)
    write_json(options.json, results)


def _of_shape(shape: str) -> Predictor:
    bundled = Predictor.load()
    if shape == "default":
        return bundled
    model = attach(llama_8b(), lora_config(8, 16, MODULES, "benchmark"), RankMasks()).eval()
    return Predictor(
        model,
        bundled.tokenizer,
        RankMasks(),
        BankSpec(),
        "answer_tokens",
        card=Card(shape, "benchmark", "", "dalorra"),
        policy=Policy.never(),
    )


def plans(
    predictor: Predictor, prompts: Sequence[Prompt], batching: Batching
) -> dict[str, Callable[[], list[Prediction]]]:
    """Name of each plan → what answers the prompts, in order of length; `batching` splits."""
    ordered = sorted(prompts, key=lambda prompt: prompt.tokens)
    whole = replace(batching, budget=UNBOUNDED, price=UNBOUNDED)

    def answer(own: Batching, *parts: Sequence[Prompt]) -> list[Prediction]:
        predictor.batching = own
        return [prediction for part in parts for prediction in predictor.predict(part)]

    return {
        "in one": partial(answer, whole, ordered),
        "joined": partial(answer, batching, ordered),
        "alone": partial(answer, whole, *([prompt] for prompt in ordered)),
    }


if __name__ == "__main__":
    main()
