"""The figure and the part of `docs/results.md` about the two kinds of doubt."""

from collections.abc import Mapping, Sequence
from typing import Final

from matplotlib.figure import Figure

from benchmarks.doubt_measures import CHANCE, CHOSEN, MEASURES, OF_SAMPLES, Group, Study
from benchmarks.report import Line, markdown_table

_COLOURS: Final[dict[Group, str]] = {
    "usual": "#B0B0B0",
    "unknown": "#D55E00",
    "ambiguous": "#0072B2",
}


def drawn(studies: Sequence[Study], lines: Sequence[Line]) -> Figure:
    """Of each adapter: what is not accepted of the test half, by novelty and by the samples."""
    threshold = next(line["threshold"] for line in lines if line["measure"] == CHOSEN)
    figure = Figure(figsize=(3.4 * len(studies), 3.6), layout="constrained")
    panels = figure.subplots(1, len(studies), squeeze=False, sharey=True)[0]
    for axes, study in zip(panels, studies, strict=True):
        for group, colour in _COLOURS.items():
            answers = study.refused("test", group)
            x, y = ([MEASURES[name](p) for p in answers] for name in (CHOSEN, "I / entropy"))
            axes.scatter(x, y, s=9, alpha=0.7, linewidths=0, color=colour, label=group)
        axes.axvline(threshold, color="black", linewidth=0.8)
        axes.set(title=study.task, yscale="log", xlim=(0, 1), xlabel=CHOSEN)
    figure.axes[0].set_ylabel("mutual information / entropy")
    return figure


def section(lines: Sequence[Line]) -> str:
    """Markdown; the title at the second level.

    Args:
        lines: of `compared` and of `decided`.
    """
    measured = [line for line in lines if "measure" in line and line["half"] == "test"]
    judged = [line for line in lines if "kind" in line and line["half"] == "test"]
    tasks = list(dict.fromkeys(line["task"] for line in measured))
    by = {(line["measure"], line["task"]): line for line in measured}
    areas = markdown_table(
        ("measure", *tasks),
        ((name, *(_area(by[name, task]) for task in tasks)) for name in MEASURES),
    )
    shares = markdown_table(
        ("measure", "ambiguous is", *(f"{task}: ambiguous, unknown, usual" for task in tasks)),
        (
            (
                name,
                "{ambiguous_side} {threshold:.3g}".format_map(by[name, tasks[0]]),
                *(_shares(by[name, task]) for task in tasks),
            )
            for name in MEASURES
        ),
    )
    decisions = markdown_table(
        ("inputs", "task", "n", "accepted", "escalated", "clarified"),
        (
            (
                line["group"]
                if line["group"] == line["kind"]
                else f"{line['group']}: {line['kind']}",
                line["task"],
                str(line["n"]),
                *(f"{line[name]:.0%}" for name in ("accept", "escalate", "clarify")),
            )
            for line in judged
        ),
    )
    counts = "; ".join(
        "{task} {ambiguous}, {unknown} and {usual}".format(task=task, **by[CHOSEN, task]["n"])
        for task in tasks
    )
    return f"""## Two kinds of doubt

`python -m benchmarks.doubts`: the adapters of {", ".join(tasks)} on inputs that are in doubt by
construction. *Ambiguous* are two usual inputs with different labels made one; *unknown* are inputs
of the other tasks, reviews in other languages, invented words, and words with their letters
shuffled. All are made of examples that no adapter was trained or selected on; one half of them
chose the thresholds, the other is shown. Compared is what is not accepted (ambiguous, unknown and
usual: {counts}).

AUROC of the ambiguous above the unknown, with its 95 % interval over the draw of the inputs
(bootstrap); below 0.5, the unknown have more of it:

{areas}

{_reading(by, tasks)}

Share of each group on the ambiguous side of one threshold for all adapters, chosen on the other
half:

{shares}

What the policies make of them, accepted ones included:

{decisions}

![What is not accepted, by novelty and by I / entropy](../benchmarks/results/doubts.png)
"""


def _area(line: Line) -> str:
    low, high = line["interval"]
    return f"{line['auroc']:.2f} ({low:.2f}–{high:.2f})"


def _shares(line: Line) -> str:
    found = line["clarified"]
    return ", ".join(f"{found[group]:.0%}" for group in ("ambiguous", "unknown", "usual"))


def _reading(by: Mapping[tuple[str, str], Line], tasks: Sequence[str]) -> str:
    of_samples = [by[name, task] for name in OF_SAMPLES for task in tasks]
    ambiguous_more = sum(line["interval"][0] > CHANCE for line in of_samples)
    unknown_more = sum(line["interval"][1] < CHANCE for line in of_samples)
    worst = min(by[CHOSEN, task]["auroc"] for task in tasks)
    verdict = (
        "disagreement is no sign of what the model does not know: what speaks for two labels "
        "reaches the ranks that the masks switch, what speaks for none passes them by (BayesLoRA, "
        "Proposition 1)"
        if ambiguous_more > unknown_more
        else "disagreement is the sign that BayesLoRA takes it for"
    )
    return (
        f"By {', '.join(OF_SAMPLES)}, with the banks that serve, the samples disagree more on the "
        f"ambiguous inputs in {ambiguous_more} of {len(of_samples)} comparisons and more on the "
        f"unknown ones in {unknown_more}, chance excluded; {verdict}. The {CHOSEN} has an "
        f"AUROC of {worst:.2f} at worst, and one scale for all adapters, since it is a "
        "rank among usual inputs."
    )
