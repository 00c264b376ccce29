"""What each method costs beside plain LoRA, as a part of `docs/results.md`.

    python -m benchmarks.costs [--results FILE] [--out FILE]
    dalorra report benchmarks/results/experiments

Reads what `benchmarks.methods` wrote, and measures nothing itself.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import Line, markdown_table, read_json

_COLUMNS = {
    "step_ratio": "training step",
    "kept_ratio": "memory of a step",
    "evaluation_ratio": "evaluation",
}


def main() -> None:
    """Writes the part, where the report finds it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/methods.json"))
    default = Path("benchmarks/results/experiments/costs/SECTION.md")
    parser.add_argument("--out", type=Path, default=default)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(section(read_json(options.results)), "utf-8")


def section(lines: Sequence[Line]) -> str:
    """Markdown; the title at the second level."""
    first = lines[0]
    scopes = list(dict.fromkeys(line["scope"] for line in lines))
    by = {(line["method"], line["scope"]): line for line in lines}
    methods = list(dict.fromkeys(line["method"] for line in lines))
    table = markdown_table(
        (
            "method",
            "trained",
            "beside A and B",
            *(f"{column}, {scope}" for scope in scopes for column in _COLUMNS.values()),
        ),
        (
            (
                method,
                f"{by[method, scopes[0]]['trainable']:,}",
                f"{by[method, scopes[0]]['extra']:,}",
                *(f"{by[method, scope][key]:.2f}" for scope in scopes for key in _COLUMNS),
            )
            for method in methods
        ),
    )
    units = "; ".join(
        f"`{scope}` {by[methods[0], scope]['step_ms']:.0f} ms, "
        f"{by[methods[0], scope]['kept_mib']:.0f} MiB, "
        f"{by[methods[0], scope]['evaluation_ms']:.0f} ms"
        for scope in scopes
    )
    dalorra = {scope: by["dalorra", scope] for scope in scopes}
    steps = " and ".join(f"{line['step_ratio']:.2f}" for line in dalorra.values())
    evaluations = " and ".join(f"{line['evaluation_ratio']:.2f}" for line in dalorra.values())
    return f"""## Costs

`python -m benchmarks.methods` on {first["hardware"]["processor"]}, {first["hardware"]["threads"]}
threads, seed 0: r = {first["rank"]}, mini-batches of {first["batch"]} prompts of {first["tokens"]}
tokens, M = {dalorra[scopes[0]]["samples"]} passes in the packed forward, medians of
{first["repeats"]} rounds. Times and memory are ratios to plain LoRA in the same run
({units}); memory is what a step keeps for its backward. Laplace keeps the factors of its
curvature beside A and B, and its evaluation is one differentiated pass; that of the ensemble runs
three adapters.

{table}

The DALorRA paper (Table 2, one A40, Llama-3.1-8B) reports 0.60 to 0.72 of LoRA's training time and
6.2 to 7.8 of its evaluation. Here a step takes {steps} of LoRA's ({" and ".join(scopes)}): z is a
vector that A·x is multiplied by, so nothing is left out of any product, and we have found nothing
that would make a step faster. An evaluation takes {evaluations}, where plain LoRA has our packed
forward, too.
"""


if __name__ == "__main__":
    main()
