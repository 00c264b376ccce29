"""What questions about one state cost together, in plain LoRA passes and beside single calls.

    python -m benchmarks.questions --state-tokens 200 2000 --questions 1 4 16 64 --json OUT

Random tokens: a state, questions of about 20 tokens with 4 options each, under M samples,
`answer_tokens`. The unit is one pass of a plain PEFT LoRA over state and one question. Contenders,
in turn: all questions in one tree of rows, with nothing known and with the state in the prefix
cache; under one sample; and each question in a call of its own, likewise with nothing known and
with the state (but not the question) known. Of single calls a few are timed, and scaled to all. A
loop of plain passes, one for each question and sample, is that many times the unit.

Options are one token each (`letters`) or two (`texts`), which takes a trie behind the cue.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import torch

from benchmarks.plans import Contenders
from benchmarks.prompts import random_prompts
from benchmarks.report import (
    arguments,
    interleaved,
    markdown_table,
    print_table,
    read_json,
    write_json,
)
from dalorra.adapter.layer import low_rank_updates
from dalorra.base.model import load_base_model
from dalorra.forward.batches import tree_row_count
from dalorra.forward.in_forwards import posterior_samples, question_samples
from dalorra.forward.llama.prefix_cache import PrefixCache
from dalorra.forward.llama.questions import QuestionLlama
from dalorra.labels import LabelTrie, TokenIds
from dalorra.posteriors.bank import MaskBank
from dalorra.prompts import Prompt, Scope

SCOPE: Final[Scope] = "answer_tokens"
LENGTHS: Final = (16, 25)
"""Tokens of a question, from and below."""
CACHE_BYTES: Final = 1 << 30
OPTIONS: Final = {
    "letters": LabelTrie(((5,), (6,), (7,), (8,))),
    "texts": LabelTrie(((5, 9), (6, 9), (7, 9), (8, 9))),
}
"""The options of every question."""
PLANS: Final = {
    "lora": "one plain LoRA pass, state and one question",
    "tree": "all questions together",
    "tree, known state": "all together, the state known",
    "tree, one sample": "all together, one sample",
    "calls": "single calls",
    "calls, known state": "single calls, the state known",
    "loop": "plain LoRA passes, questions × samples",
}
COLUMNS = ("plan", "state_tokens", "questions", "readout", "median_ms", "ratio_to_single", "share")


def main() -> None:
    """Runs the benchmark and writes its JSON."""
    parser = arguments(__doc__, "questions")
    parser.add_argument("--state-tokens", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--questions", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--readouts", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--cue-tokens", type=int, default=3)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--calls", type=int, default=4, help="single calls that are timed")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--render", action="store_true", help="print the table of the JSON, measure nothing"
    )
    options = parser.parse_args()
    if options.render:
        print(table(read_json(options.json)))
        return
    contenders = Contenders(load_base_model().model, options.samples)
    results = []
    for line in measure(contenders, options):
        results.append(line)
        write_json(options.json, results)  # what is measured is kept, however long the rest takes
    print_table(f"M = {options.samples} samples", results, COLUMNS)


def measure(contenders: Contenders, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One line for each plan, state, number of questions and readout."""
    for readout in options.readouts:
        for tokens in options.state_tokens:
            for count in options.questions:
                asked = Asked(contenders, tokens, count, options, readout)
                timed = interleaved(asked.plans(), options.repeats, warm_up=1)
                calls = min(options.calls, count)
                lines = {
                    plan: _times(numbers, count / calls if plan.startswith("calls") else 1)
                    for plan, numbers in timed.items()
                }
                lines["loop"] = _times(timed["lora"], count * options.samples)
                for plan, numbers in lines.items():
                    yield {
                        "plan": plan,
                        "state_tokens": tokens,
                        "questions": count,
                        "question_tokens": [len(p.prompt_ids) - tokens for p in asked.prompts],
                        "readout": readout,
                        "cue_tokens": options.cue_tokens,
                        "samples": options.samples,
                        "rows": tree_row_count(asked.prompts, options.samples, SCOPE),
                        "timed_calls": calls,
                        "repeats": options.repeats,
                        "dtype": str(contenders.model.get_base_model().dtype),
                        **numbers,
                        "share": numbers["median_ms"] / lines["calls"]["median_ms"],
                    }


def _times(numbers: dict[str, float], factor: float) -> dict[str, float]:
    return {name: factor * value for name, value in numbers.items()}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Milliseconds, plain passes and the share of single calls, by plan and number of questions."""
    cases = list(dict.fromkeys((r["readout"], r["state_tokens"], r["questions"]) for r in results))
    found = {(r["readout"], r["state_tokens"], r["questions"], r["plan"]): r for r in results}
    head = ("options", "state", "questions", *PLANS.values())
    rows = []
    for case in cases:
        cells = [found[*case, plan] for plan in PLANS]
        rows.append((*map(str, case), *(_cell(line) for line in cells)))
    return markdown_table(head, rows)


def _cell(line: dict[str, Any]) -> str:
    said = f"{line['median_ms']:.0f} ms, {line['ratio_to_single']:.2f}×"
    return said if line["plan"] in ("lora", "calls", "loop") else f"{said}, {line['share']:.2f}"


class Asked:
    """Questions about one state, and what answers them.

    Args:
        contenders: the adapter, ours and as a plain one.
        tokens: of the state.
        count: questions.
        options: of the command line.
        readout: of the questions' options.
    """

    def __init__(
        self,
        contenders: Contenders,
        tokens: int,
        count: int,
        options: argparse.Namespace,
        readout: str,
    ) -> None:
        self._contenders = contenders
        self._generator = torch.Generator().manual_seed(0)
        self._cue: TokenIds = tuple(range(100, 100 + options.cue_tokens))
        self._vocabulary = min(20_000, contenders.vocabulary)
        [self._state] = (prompt.prompt_ids for prompt in self._random([tokens]))
        self._lengths = torch.randint(*LENGTHS, (count,), generator=self._generator).tolist()
        self._trie = OPTIONS[readout]
        self._calls = min(options.calls, count)
        self.prompts = self.new_questions(count)

    def plans(self) -> dict[str, Callable[[], object]]:
        """As functions without arguments, the unit first; of single calls those that are timed."""
        contenders, calls = self._contenders, self._calls
        base, batching, bank = contenders.arranged, contenders.batching, contenders.bank
        network = QuestionLlama(base, low_rank_updates(contenders.model), bank, SCOPE)
        one = network.under(MaskBank(bank.masks[:1]))
        tokens = torch.tensor([path[0] for path in self._trie.paths], device=base.device)
        single = contenders.network(self._trie if self._trie.nodes else tokens, SCOPE)
        cache = PrefixCache(CACHE_BYTES)

        def together(asked: QuestionLlama = network) -> None:
            question_samples(asked, self.prompts, batching, SCOPE)

        def one_by_one(prompts: Sequence[Prompt]) -> None:
            for prompt in prompts:
                own = prompt if self._trie.nodes else replace(prompt, trie=None)
                posterior_samples(single, [own], batching, SCOPE)

        def known(run: Callable[[], None]) -> Callable[[], None]:
            def with_cache() -> None:
                base.prefix_cache = cache
                run()
                base.prefix_cache = None

            return with_cache

        plans: dict[str, Callable[[], object]] = {
            "tree": together,
            "tree, known state": known(together),
            "tree, one sample": lambda: together(one),
            "calls": lambda: one_by_one(self.prompts[:calls]),
            "calls, known state": known(lambda: one_by_one(self.new_questions(calls))),
        }
        timed = {name: contenders.synchronised(run) for name, run in plans.items()}
        return {"lora": contenders.plain_pass(self.prompts[:1]), **timed}

    def new_questions(self, count: int) -> list[Prompt]:
        """Other tokens about the same state: the prefix cache knows of the state alone."""
        return [
            replace(
                prompt,
                prompt_ids=(*self._state, *prompt.prompt_ids),
                trie=self._trie,
                shared=len(self._state),
            )
            for prompt in self._random(self._lengths[:count])
        ]

    def _random(self, lengths: Sequence[int]) -> list[Prompt]:
        return random_prompts(lengths, self._generator, self._cue, self._vocabulary)


if __name__ == "__main__":
    main()
