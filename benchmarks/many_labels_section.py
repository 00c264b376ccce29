"""The measured worth of a class head and of the configs with many labels, in `docs/results.md`.

    python -m benchmarks.many_labels_section [--results FOLDER] [--out FILE]
    dalorra report benchmarks/results/experiments

Reads what `benchmarks.intents`, `benchmarks.many_labels`, `benchmarks.trie_or_head`,
`benchmarks.error_ranking` and `benchmarks.out_of_scope` wrote, and measures nothing itself.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import Line, markdown_table, write_section
from dalorra.decision.novelty import LAST_DEPTH


def main() -> None:
    """Writes the part, where the report finds it."""
    write_section(__doc__, "many_labels", section)


def section(results: Path) -> str:
    """Markdown without a title of its own, headings from the second level.

    Args:
        results: folder of the JSON files; a part whose file is missing is left out.
    """
    parts = {
        "intents": _intents,
        "trie_or_head": _ways,
        "many_labels": _costs,
        "error_ranking": _ranking,
        "out_of_scope": _outside,
    }
    written = ["## Many labels\n"]
    for name, part in parts.items():
        path = results / f"{name}.json"
        if path.exists():
            written.append(part(json.loads(path.read_text("utf-8"))))
    return "\n".join(written)


def _intents(lines: Sequence[Line]) -> str:
    table = markdown_table(
        ("config", "labels by", "trained on", "steps", "minutes", "n", "accuracy", "NLL", "ECE %"),
        (
            (
                f"[{line['config']}](../training/configs/{line['config']}.yaml)",
                "head",
                f"{line['examples']['train']:,}",
                f"{line['steps']:,}",
                f"{line['minutes']:.0f}",
                f"{line['n']:,}",
                _with(line["accuracy"], line["interval"]),
                f"{line['nll']:.3f}",
                f"{100 * line['ece']:.1f} ({100 * line['ece_by_chance']:.1f})",
            )
            for line in lines
        ),
    )
    accepted = "; ".join(
        f"{line['config']} accepts {line['accepted']:.1%} with {line['accepted_error']:.1%} errors"
        + (
            f", and {line['out_of_scope']['accepted']:.0%} of {line['out_of_scope']['n']} texts "
            "that are out of scope"
            if "out_of_scope" in line
            else ""
        )
        for line in lines
        if line["accepted_error"] is not None
    )
    steps = "; ".join(
        f"{line['training_minutes']:.0f} of those of {line['config']} are its training steps"
        for line in lines
        if "training_minutes" in line
    )
    training = f" ({steps})" if steps else ""
    seed, machine = lines[0]["seed"], lines[0]["hardware"]
    where = f"{machine['processor']}, {machine['threads']} threads"
    return f"""The shipped configs of tasks with many labels (`python -m benchmarks.intents`, seed
{seed}, {where}), scored on examples that chose nothing: for banking77 a part
of the training set, for clinc150 its validation set. Minutes are those of the processor divided by
the threads, with everything that `dalorra train` does{training}; intervals are
Clopper and Pearson's at 95 %; in brackets the ECE that chance alone makes.

{table}

At the promised 5 % error {accepted}.
"""


def _ways(lines: Sequence[Line]) -> str:
    table = markdown_table(
        ("examples a label", "labels by", "untrained", "accuracy", "NLL", "ECE %", "minutes"),
        (
            (
                str(line["examples"]),
                line["labels_by"],
                f"{100 * line['untrained']:.1f}",
                _with(line["accuracy"], line["interval"]),
                f"{line['nll']:.3f}",
                f"{100 * line['ece']:.1f} ({100 * line['ece_by_chance']:.1f})",
                f"{line['minutes']:.1f}",
            )
            for line in lines
        ),
    )
    first = lines[0]
    of_run = "{steps} steps of 16 texts, seed {seed}, {n} other texts scored".format_map(first)
    return f"""### A trie or a head

`python -m benchmarks.trie_or_head`: the first {first["labels"]} intents of clinc150, which as a
trie take {first["nodes"]} rows; {of_run}.

{table}
"""


def _costs(lines: Sequence[Line]) -> str:
    counts = list(dict.fromkeys(line["labels"] for line in lines))
    batches = list(dict.fromkeys(line["batch"] for line in lines))
    by = {(line["labels"], line["batch"], line["plan"]): line for line in lines}
    table = markdown_table(
        (
            "labels",
            "rows of the trie",
            *(f"{p}, batch {b}" for b in batches for p in ("head", "trie")),
        ),
        (
            (
                str(count),
                str(by[count, batches[0], "trie"]["nodes"]),
                *(
                    f"{by[count, batch, plan]['ratio_to_single']:.2f}"
                    for batch in batches
                    for plan in ("head", "trie")
                ),
            )
            for count in counts
        ),
    )
    what = "M = {samples} samples of a text of {tokens} tokens".format_map(lines[0])
    return f"""### What they cost

`python -m benchmarks.many_labels`: {what} under `answer_tokens`, in
units of one plain LoRA pass in the same rounds ({lines[0]["repeats"]} rounds).

{table}
"""


def _ranking(lines: Sequence[Line]) -> str:
    ranked = [line for line in lines if "measure" in line]
    judged = [line for line in lines if "of" in line]
    tasks = list(dict.fromkeys(line["task"] for line in ranked))
    by = {(line["task"], line["measure"]): line for line in ranked}
    head = [f"{t}, K = {by[t, ranked[0]['measure']]['labels']}" for t in tasks]
    areas = markdown_table(
        ("measure", *head),
        (
            (name, *(_area(by[task, name]) for task in tasks))
            for name in dict.fromkeys(line["measure"] for line in ranked)
        ),
    )
    honest = markdown_table(
        ("adapter", "answers by", "temperature", "ECE %", "NLL", "Brier"),
        (
            (
                line["task"],
                line["of"],
                f"{line['temperature']:.2f}",
                f"{100 * line['ece']:.1f} ({100 * line['ece_by_chance']:.1f})",
                f"{line['nll']:.3f}",
                f"{line['brier']:.3f}",
            )
            for line in judged
        ),
    )
    counts = "; ".join(
        "{task} {errors} of {n:,}".format_map(by[t, ranked[0]["measure"]]) for t in tasks
    )
    return f"""### What ranks errors

`python -m benchmarks.error_ranking`: AUROC of wrong answers above right ones with its 95 % interval
(bootstrap over the examples), on what no adapter was trained, selected or calibrated on. Errors:
{counts}.

{areas}

The probabilities of the same answers; the temperature is that of the policy, fitted to a tenth of
what calibrated it:

{honest}
"""


def _outside(found: Sequence[Line]) -> str:
    lines = [line for line in found if "contender" in line]
    scores = [line for line in found if "score" in line]
    table = markdown_table(
        (
            "",
            "AUROC",
            "of novelty",
            "in scope: accuracy",
            "accepted",
            "out of scope: accepted",
            "error",
        ),
        (
            (
                line["contender"],
                _auroc(line),
                "" if line["auroc_of_novelty"] is None else f"{line['auroc_of_novelty']:.3f}",
                f"{100 * line['accuracy']:.1f}",
                _with(line["accepted"], line["accepted_interval"]),
                _with(line["accepted_outside"], line["accepted_outside_interval"]),
                f"{100 * line['error']:.1f}",
            )
            for line in lines
        ),
    )
    compared = markdown_table(
        ("distance from", "weight of the last depth", "AUROC", "detected at 2 % false alarms"),
        (
            (
                line["score"],
                f"{line['last_depth']:g}",
                _auroc(line),
                f"{line['detected_at_2']:.0%}",
            )
            for line in scores
        ),
    )
    sizes = scores[0]["n"]
    counts = "{n:,} texts, {outside} of them out of scope".format_map(lines[0])
    share = f"{100 * lines[0]['share']:.0f} %"
    return f"""### Out of scope

`python -m benchmarks.out_of_scope`: of clinc150's validation set {counts}.
One half calibrates each contender for 5 % error among what is accepted, with out-of-scope texts as
{share} of the inputs and errors when accepted; the other half measures, and then they change
places. AUROC is that of 1 − p for telling what is out of scope from the rest; the error is at that
share; all else in %, with 95 % intervals.

{table}

Scores of novelty on other texts, the {sizes["in"]} that the run held out and the
{sizes["out"]} of the training set that are out of scope, fitted on {sizes["train"]:,} texts. The
last depth weighs {LAST_DEPTH:g} where it serves; `benchmarks.novelty` compares weights on inputs of
quite other kinds. It was chosen after a look at the validation texts, too, under an earlier
adapter.

{compared}
"""


def _auroc(line: Line) -> str:
    return "{:.3f} ({:.3f}–{:.3f})".format(line["auroc"], *line["auroc_interval"])


def _with(share: float, interval: Sequence[float]) -> str:
    return f"{100 * share:.1f} ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})"


def _area(line: Line) -> str:
    low, high = line["interval"]
    return f"{line['auroc']:.2f} ({low:.2f}–{high:.2f})"


if __name__ == "__main__":
    main()
