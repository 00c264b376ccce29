"""By what the options of a question are read, and which rows the adapter acts on: each trained.

    python -m benchmarks.readouts --data FOLDER --out FOLDER [--per-set N] [--steps N]
    dalorra report benchmarks/results/experiments

Trains `training/configs/questions.yaml` as it is read and scoped, and with either changed, all on
the same questions in the same order, smaller than as it is shipped so that all fit into an hour.
Kept is what each scored on questions of kinds that it was trained on and of others, how much an
answer depends on the order of the options, and the minutes of the whole run. FOLDER holds
`<task>/<split>.jsonl`; a run that is in the second one already is not repeated. `--render` writes
the part of `docs/results.md` from the JSON and trains nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.report import Line, arguments, markdown_table, print_table, read_json, write_json
from benchmarks.timed_run import timed_run
from dalorra.decision.intervals import binomial_interval

CONFIG: Final = Path("training/configs/questions.yaml")
VARIANTS: Final = (
    ("texts", "answer_tokens"),
    ("letters", "answer_tokens"),
    ("texts", "all_tokens"),
)
"""Readout and scope; the first are those of the config."""
_SECTION: Final = Path("benchmarks/results/experiments/readouts/SECTION.md")
_SEEN: Final = {True: "kinds trained on", False: "other kinds"}


def main() -> None:
    """Trains, and writes the JSON and the part of `docs/results.md`."""
    parser = arguments(__doc__, "readouts")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, help="folder of the runs")
    parser.add_argument("--per-set", type=int, default=100, help="questions that are trained on")
    parser.add_argument("--evaluated", type=int, default=80, help="questions of each set")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--render", action="store_true", help="of the JSON; trains nothing")
    options = parser.parse_args()
    if not options.render:
        overrides = {
            "data.source": str(options.data),
            "task.per_set": str(options.per_set),
            "task.evaluated": str(options.evaluated),
            "optimizer.steps": str(options.steps),
            "optimizer.batch_size": str(options.batch_size),
            "evaluation.every": str(options.steps // 2),
        }
        lines = [
            line
            for readout, scope in VARIANTS
            for line in run(readout, scope, options.out, overrides)
        ]
        print_table("Readouts", lines, ("readout", "scope", "kinds", "minutes", "accuracy", "nll"))
        write_json(options.json, lines)
    _SECTION.parent.mkdir(parents=True, exist_ok=True)
    _SECTION.write_text(rendered(read_json(options.json)), "utf-8")


def run(readout: str, scope: str, out: Path, overrides: Mapping[str, str]) -> list[Line]:
    """One line for the kinds of questions that were trained on, and one for the others."""
    own = {"task.prompt.readout": readout, "adapter.scope": scope}
    made, scores, minutes = timed_run(CONFIG, out / f"{readout}-{scope}", {**overrides, **own})
    config = made["config"]
    context = {
        "readout": readout,
        "scope": scope,
        **minutes,
        "trained_on": made["examples"]["train"],
        "steps": config["optimizer"]["steps"],
        "batch_size": config["optimizer"]["batch_size"],
        "seed": config["seed"],
        "order": scores["order"],
        "hardware": made["hardware"],
        "versions": made["versions"],
    }
    return [
        {**context, "kinds": name, **_of(scores["kinds"], seen)} for seen, name in _SEEN.items()
    ]


def _of(kinds: Mapping[str, Mapping[str, Any]], seen: bool) -> dict[str, Any]:
    """Means over the questions of some kinds."""
    own = [kind for kind in kinds.values() if kind["trained_on"] is seen]
    n = sum(kind["n"] for kind in own)
    accuracy = sum(kind["n"] * kind["accuracy"] for kind in own) / n
    return {
        "n": n,
        "accuracy": accuracy,
        "interval": binomial_interval(round(n * accuracy), n),
        "nll": sum(kind["n"] * kind["nll"] for kind in own) / n,
        "brier": sum(kind["n"] * kind["brier"] for kind in own) / n,
    }


def rendered(lines: Sequence[Line]) -> str:
    """Markdown without a title of its own, headings from the second level."""
    first = lines[0]
    cases = list(dict.fromkeys((line["readout"], line["scope"]) for line in lines))
    found = {(line["readout"], line["scope"], line["kinds"]): line for line in lines}
    asked = [found[*cases[0], kinds]["n"] for kinds in _SEEN.values()]
    rows = []
    for readout, scope in cases:
        seen, other = (found[readout, scope, kinds] for kinds in _SEEN.values())
        order = seen["order"]
        rows.append(
            (
                readout,
                f"`{scope}`",
                f"{seen['minutes']:.0f}",
                _accuracy(seen),
                f"{seen['nll']:.3f}",
                _accuracy(other),
                f"{other['nll']:.3f}",
                f"{order['mean_change']:.3f}",
            )
        )
    head = (
        "options read by",
        "scope",
        "minutes",
        *(f"{score}, {kinds}" for kinds in _SEEN.values() for score in ("accuracy", "NLL")),
        "change by order",
    )
    return (
        "## Readouts of questions\n\n"
        "By what the options of a question are read, and on which rows the adapter acts: "
        "`training/configs/questions.yaml` in small, "
        f"{first['trained_on']:,} questions, {first['steps']} steps of {first['batch_size']}, seed "
        f"{first['seed']}, {first['hardware']['processor']} (`python -m benchmarks.readouts`). "
        f"Accuracy in % with its 95 % interval (Clopper and Pearson), on {asked[0]} questions of "
        f"kinds that were trained on and {asked[1]} of others (trec, banking77). *Change by order* "
        "is the mean change of a probability when the options are reversed and rotated. Minutes "
        "are those of the processor divided by the threads, evaluation included.\n\n"
        + markdown_table(head, rows)
        + "\n"
    )


def _accuracy(line: Line) -> str:
    low, high = line["interval"]
    return f"{100 * line['accuracy']:.1f} ({100 * low:.1f}–{100 * high:.1f})"


if __name__ == "__main__":
    main()
