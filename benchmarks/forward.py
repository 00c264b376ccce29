"""What M sampled passes cost, in units of one plain LoRA pass.

    python -m benchmarks.forward --tokens 40 100 200 300 --samples 10 --batch 1 8 --json OUT

Contenders, in turn on the same prompts: one pass of a plain PEFT LoRA with
`logits_to_keep=1` (the unit); ours, packed, for `answer_tokens` and `all_tokens`, in forwards of
at most as many rows as the server puts into one; one sample of it, which is what a plain pass
would cost in our arrangement of the model; the `answer_tokens` rows through the unmodified model;
PEFT in a loop of M, as published implementations do it; and M rows of the batch through PEFT; on a
GPU ours and the plain pass as CUDA graphs, too. `--plans` adds a plain pass compiled by
TorchInductor for each shape, which takes a C++ compiler and about a minute a shape.
`--shape llama-3.1-8b` builds that shape with random weights, for a GPU.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.plans import ON_GPU, ON_REQUEST, PLANS, Contenders, llama_8b
from benchmarks.prompts import random_prompts
from benchmarks.report import (
    arguments,
    interleaved,
    print_table,
    read_json,
    save_figure,
    write_json,
)
from benchmarks.roofline import COLUMNS, Machine, Shape, with_roofline
from dalorra.base.model import load_base_model

SLOW_ABOVE = 400  # tokens · batch: the loop over M is then timed fewer times
COLOURS = {
    "lora": "#666666",
    "answer_tokens": "#D55E00",
    "one sample": "#CC79A7",
    "all_tokens": "#0072B2",
    "unmodified packed": "#E69F00",
    "loop": "#999999",
    "rows": "#56B4E9",
    "recorded": "#009E73",
    "one sample recorded": "#F0E442",
    "lora recorded": "#333333",
    "compiled": "#000000",
}


def main() -> None:
    """Runs the benchmark and writes its JSON and figure."""
    parser = arguments(__doc__, "forward")
    parser.add_argument("--tokens", type=int, nargs="+", default=[40, 100, 200, 300])
    parser.add_argument("--cue-tokens", type=int, default=4)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=9)
    known = PLANS | ON_GPU if torch.cuda.is_available() else PLANS
    parser.add_argument("--plans", nargs="+", choices=known | ON_REQUEST, default=list(known))
    parser.add_argument("--shape", choices=["default", "llama-3.1-8b"], default="default")
    parser.add_argument(
        "--render", action="store_true", help="draw the JSON again, measure nothing"
    )
    options = parser.parse_args()
    if options.render:
        _figure(read_json(options.json), options.json.with_suffix(".png"))
        return

    base = load_base_model().model if options.shape == "default" else llama_8b()
    contenders = Contenders(base, options.samples)
    plans = ["lora", *(plan for plan in options.plans if plan != "lora")]
    machine = Machine.measure(contenders.device)
    results = list(measure(contenders, plans, options))
    results = with_roofline(results, Shape.of(base.config), machine)
    print_table(
        f"M = {options.samples} samples, {machine.matmul_tflops:.3g} TFLOP/s, "
        f"{machine.copy_gb_per_s:.3g} GB/s",
        results,
        (*COLUMNS, "ratio_to_single"),
    )
    write_json(options.json, results)
    _figure(results, options.json.with_suffix(".png"))


def measure(
    contenders: Contenders, plans: list[str], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    cue = tuple(range(100, 100 + options.cue_tokens))
    vocabulary = min(20_000, contenders.vocabulary)
    for batch in options.batch:
        for tokens in options.tokens:
            prompts = random_prompts([tokens - len(cue)] * batch, generator, cue, vocabulary)
            quick = tokens * batch <= SLOW_ABOVE
            repeats = options.repeats if quick else max(options.repeats // 2, 3)
            timed = interleaved(contenders.on(prompts, plans), repeats, warm_up=1)
            for plan, numbers in timed.items():
                yield {
                    "plan": plan,
                    "tokens": tokens,
                    "cue_tokens": options.cue_tokens,
                    "samples": options.samples,
                    "batch": batch,
                    "repeats": repeats,
                    "shape": options.shape,
                    "dtype": str(contenders.model.get_base_model().dtype),
                    **numbers,
                }


def _figure(results: list[dict[str, Any]], path: Path) -> None:
    batches = sorted({r["batch"] for r in results})
    figure = Figure(figsize=(4.4 * len(batches), 3.6), layout="constrained")
    names = PLANS | ON_GPU | ON_REQUEST
    for axes, batch in zip(
        figure.subplots(1, len(batches), squeeze=False)[0], batches, strict=True
    ):
        for plan, name in names.items():
            own = [r for r in results if r["plan"] == plan and r["batch"] == batch]
            if own:
                axes.plot(
                    [r["tokens"] for r in own],
                    [r["ratio_to_single"] for r in own],
                    color=COLOURS[plan],
                    marker="o",
                    markersize=4,
                    label=name,
                )
        axes.set(xlabel="tokens of the prompt", title=f"batch {batch}", yscale="log")
        axes.set_yticks([0.2, 0.5, 1, 2, 5, 10], ["0.2×", "0.5×", "1×", "2×", "5×", "10×"])
        axes.minorticks_off()
    figure.axes[0].set_ylabel("time, in plain LoRA passes")
    save_figure(figure, path)


if __name__ == "__main__":
    main()
