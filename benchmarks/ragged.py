"""Prompts that differ in length: padded together, split by length, joined, or each alone.

    python -m benchmarks.ragged --data FOLDER --json OUT

Batches of sst2 validation sentences: padded to the longest; as two forwards, the shorter half and
the longer half; padded, and split where the padding saved is worth a forward; joined to one
sequence without padding, as `forward.llama.layout` does; each alone. With the bundled adapter, or,
for a GPU, with `--shape llama-3.1-8b`: random weights of that shape.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.plans import MODULES, llama_8b
from benchmarks.report import interleaved, print_table, write_json
from dalorra.adapter.directory import bundled_adapter, read_adapter
from dalorra.adapter.layer import attach, lora_config
from dalorra.base.model import load_base_model
from dalorra.decision.policy import Policy
from dalorra.decision.predictive import Prediction
from dalorra.forward.batches import ForwardCost, cheapest_groups, forward_cost
from dalorra.forward.llama.base import ArrangedLlama
from dalorra.posteriors import RankMasks
from dalorra.posteriors.bank import BankSpec
from dalorra.predictor import Predictor
from dalorra.prompts import Prompt
from training.tasks import load_examples, subsample

NEVER = ForwardCost(10**6, 1.0)  # a price at which no batch is split


def main() -> None:
    """Runs the comparison and writes its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with sst2/validation.jsonl; the hub")
    parser.add_argument("--shape", choices=["default", "llama-3.1-8b"], default="default")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--batches", type=int, default=3, help="different ones of each size")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/ragged.json"))
    options = parser.parse_args()

    predictor, packed = _of_shape(options.shape)
    cost = forward_cost(packed.device, joined=False)
    examples = load_examples("sst2", "validation", options.data)
    results = []
    for batch in options.batch:
        for number in range(options.batches):
            chosen = subsample(examples, batch, seed=number)
            prompts = [predictor.encode(dict(example.input)) for example in chosen]
            rows = [predictor.packed_rows(prompt) for prompt in prompts]
            about = {
                "shape": options.shape,
                "batch": batch,
                "number": number,
                "repeats": options.repeats,
                "padding": 1 - sum(rows) / (batch * max(rows)),
                "groups": len(cheapest_groups(rows, predictor.row_budget, cost)),
            }
            timed = interleaved(_plans(predictor, packed, prompts, cost), options.repeats)
            results += [{"plan": plan, **about, **numbers} for plan, numbers in timed.items()]
    columns = ("plan", "batch", "padding", "groups", "median_ms", "ratio_to_single")
    print_table("Ragged prompts", results, columns)
    write_json(options.json, results)


def _of_shape(shape: str) -> tuple[Predictor, ArrangedLlama]:
    """A predictor, and its base."""
    adapter, base = read_adapter(bundled_adapter()), load_base_model()
    if shape == "default":
        packed = ArrangedLlama(base.model)
        return Predictor.from_adapter(adapter, base, packed=packed), packed
    own = Predictor.from_adapter(adapter, base)
    model = attach(llama_8b(), lora_config(8, 16, MODULES, "benchmark"), RankMasks()).eval()
    packed = ArrangedLlama(model.get_base_model())
    predictor = Predictor(
        model,
        own.tokenizer,
        RankMasks(),
        BankSpec(),
        "answer_tokens",
        policy=Policy.never(),
        model_name=shape,
        adapter_name="benchmark",
        adapter_digest="",
        method="dalorra",
        packed=packed,
    )
    return predictor, packed


def _plans(
    predictor: Predictor, packed: ArrangedLlama, prompts: Sequence[Prompt], padded: ForwardCost
) -> dict[str, Callable[[], list[Prediction]]]:
    """Each answers the prompts in order of length; `padded` is the cost of a padded forward."""
    ordered = sorted(prompts, key=lambda prompt: prompt.tokens)
    middle = len(ordered) // 2
    joined_cost = forward_cost(packed.device, joined=True)

    def answer(
        *parts: Sequence[Prompt], cost: ForwardCost = NEVER, joined: bool = False
    ) -> list[Prediction]:
        packed.joins_prompts = joined
        predictor.forward_cost = cost
        return [prediction for part in parts for prediction in predictor.predict(part)]

    return {
        "padded": partial(answer, ordered),
        "two buckets": partial(answer, ordered[:middle], ordered[middle:]),
        "grouped": partial(answer, ordered, cost=padded),
        "joined": partial(answer, ordered, cost=joined_cost, joined=True),
        "alone": partial(answer, *([prompt] for prompt in ordered)),
    }


if __name__ == "__main__":
    main()
