"""What K labels of several tokens cost by a trie and by a class head, in plain LoRA passes.

    python -m benchmarks.many_labels --labels 2 5 10 20 40 77 150 --batch 1 8 --json OUT

Prompts of T tokens under M samples, `answer_tokens`. The labels are the first K intents of
banking77, and above 77 of clinc150; `nodes` are rows of their trie behind the cue, under every
sample. Two labels of one token each are measured beside them.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from benchmarks.plans import Contenders
from benchmarks.prompts import random_prompts
from benchmarks.report import arguments, interleaved, print_table, write_json
from dalorra.base.model import BaseModel, load_base_model
from dalorra.labels import LabelTrie
from dalorra.prompts import PromptTokenizer
from training.tasks import TASKS


def main() -> None:
    """Runs the benchmark and writes its JSON."""
    parser = arguments(__doc__, "many_labels")
    parser.add_argument("--labels", type=int, nargs="+", default=[2, 5, 10, 20, 40, 77, 150])
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    results = list(measure(load_base_model(), options))
    columns = ("plan", "labels", "nodes", "batch", "median_ms", "ratio_to_single")
    print_table(f"T = {options.tokens}, M = {options.samples}", results, columns)
    write_json(options.json, results)


def measure(base: BaseModel, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every number of labels, with the plain pass as the unit of its own rounds."""
    contenders, samples = Contenders(base.model, options.samples), range(options.samples)
    for batch in options.batch:
        for count in options.labels:
            trie = trie_of(base, count)
            cue = tuple(range(100, 104))
            generator = torch.Generator().manual_seed(0)
            lengths = [options.tokens - len(cue)] * batch
            vocabulary = min(20_000, contenders.vocabulary)
            prompts = random_prompts(lengths, generator, cue, vocabulary)
            head = nn.Linear(base.model.config.hidden_size, count, bias=False, device=base.device)
            by_head = contenders.network(torch.arange(count), "answer_tokens", head)
            by_trie = contenders.network(trie, "answer_tokens")
            ahead = [replace(prompt, trie=trie) for prompt in prompts]
            plans = {
                "lora": contenders.plain_pass(prompts),
                "tokens": contenders.ours(contenders.networks["answer_tokens"], prompts, samples),
                "head": contenders.ours(by_head, prompts, samples),
                "trie": contenders.ours(by_trie, ahead, samples),
            }
            for plan, numbers in interleaved(plans, options.repeats, warm_up=1).items():
                yield {
                    "plan": plan,
                    "labels": count,
                    "nodes": len(trie.nodes),
                    "tokens": options.tokens,
                    "cue_tokens": len(cue),
                    "samples": options.samples,
                    "batch": batch,
                    "repeats": options.repeats,
                    "dtype": str(base.dtype),
                    **numbers,
                }


def trie_of(base: BaseModel, count: int) -> LabelTrie:
    """Of the first `count` intents."""
    task = next(
        TASKS[name] for name in ("banking77", "clinc150") if len(TASKS[name].labels) >= count
    )
    labels = dict(list(task.labels.items())[:count])
    by_trie = task.prompt_format.model_copy(update={"labels": labels, "labels_by": "trie"})
    trie = PromptTokenizer(base.tokenizer, by_trie).trie
    if trie is None:
        raise AssertionError("it was asked for")
    return trie


if __name__ == "__main__":
    main()
