"""What CUDA graphs of short forwards bring, and what recording them costs.

    python -m benchmarks.graphs --json OUT

Llama-3.1-8B's shape with random weights, M = 10, cue of 4 tokens: forwards of one, two and eight
prompts as they are and replayed, beyond the rows up to which the server records; and the seconds
and memory that all its recordings take for prompts of up to `--longest` tokens.
"""

import gc
from functools import partial
from time import perf_counter
from typing import Any

import torch

from benchmarks.plans import Contenders, llama_8b
from benchmarks.prompts import CUE
from benchmarks.report import arguments, interleaved, print_table, write_json
from dalorra.forward.batches import packed_row_count
from dalorra.forward.llama.recorded import CudaGraphs, RecordedNetwork
from dalorra.prompts import Prompt

SAMPLES = 10
BATCHES = {1: (16, 76, 196, 356, 456, 700), 2: (26, 166, 316), 8: (20, 60, 196)}
UNBOUNDED = 10**6  # steps
COLUMNS = ("batch", "rows", "plan", "median_ms", "ratio_to_single")


def main() -> None:
    """Runs the comparison and writes its JSON."""
    parser = arguments(__doc__, "graphs")
    parser.add_argument("--longest", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=11)
    options = parser.parse_args()
    contenders = Contenders(llama_8b(), SAMPLES)
    del contenders.plain  # and its copy of the base
    results = [_recording(contenders, options.longest)]
    network = contenders.networks["answer_tokens"]
    unbounded = RecordedNetwork(
        network, CudaGraphs(), contenders.device, contenders.step, steps=UNBOUNDED
    )
    for batch, lengths in BATCHES.items():
        for tokens in lengths:
            # No two lengths are alike, so that several prompts are joined.
            prompts = [_prompt(tokens + i - batch // 2) for i in range(batch)]
            unbounded.record(prompts, range(SAMPLES))
            timed = interleaved(
                {
                    name: contenders.synchronised(partial(one.answers, prompts, range(SAMPLES)))
                    for name, one in (("as it is", network), ("replayed", unbounded))
                },
                options.repeats,
            )
            rows = sum(packed_row_count(p, SAMPLES, "answer_tokens") for p in prompts)
            for plan, numbers in timed.items():
                results.append({"plan": plan, "batch": batch, "rows": rows, **numbers})
    print_table("Short forwards", results[1:], COLUMNS)
    print_table("Recording", results[:1], ("longest", "recordings", "seconds", "mib"))
    write_json(options.json, results)


def _recording(contenders: Contenders, longest: int) -> dict[str, Any]:
    """All that the server would record for one adapter."""
    lengths = contenders.recorded.recordable(longest, len(CUE))
    batches = [[_prompt(tokens) for tokens in each] for each in lengths]
    contenders.networks["answer_tokens"].answers(batches[-1], range(SAMPLES))
    gc.collect()  # a recording does it, too, and would give back what others had
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    free, began = torch.cuda.mem_get_info()[0], perf_counter()
    for prompts in batches:
        contenders.recorded.record(prompts, range(SAMPLES))
    torch.cuda.synchronize()
    return {
        "plan": "recording",
        "longest": longest,
        "recordings": len(batches),
        "seconds": perf_counter() - began,
        "mib": (free - torch.cuda.mem_get_info()[0]) / 2**20,
    }


def _prompt(tokens: int) -> Prompt:
    return Prompt(tuple(range(200, 200 + tokens)), CUE)


if __name__ == "__main__":
    main()
