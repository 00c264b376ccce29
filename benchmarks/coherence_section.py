"""Coherence of answers to typed questions, in `docs/results.md`.

    python -m benchmarks.coherence_section [--results FOLDER] [--out FILE]
    dalorra report benchmarks/results/experiments

Reads what `benchmarks.coherence` wrote and the scores that others published, and measures nothing.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import Line, markdown_table, read_json, write_section


def main() -> None:
    """Writes the part, where the report finds it."""
    write_section(__doc__, "coherence", section)


def section(results: Path) -> str:
    """Markdown without a title of its own, headings from the second level.

    Args:
        results: folder of the JSON files.
    """
    lines, published = (
        read_json(results / f"{name}.json") for name in ("coherence", "coherence_published")
    )
    return "\n\n".join(("## Coherence", _scores(lines, published), _doubt(lines))) + "\n"


def _scores(lines: Sequence[Line], published: Sequence[Line]) -> str:
    found = [line for line in lines if line["measure"] == "score"]
    overall, source = found[0], published[0]["source"]
    head = ("", "tests", "ours", *(line["model"] for line in published))
    rows = [
        (
            f"**{line['title']}**" if "." not in line["name"] else line["title"].lower(),
            f"{line['n']:,}",
            _percent(line["score"]),
            *(_percent(other[line["name"]]) for other in published),
        )
        for line in found
    ]
    accuracy = ("accuracy", "", "not measured", *(_percent(x["accuracy"]) for x in published))
    return (
        "Do the answers to typed questions agree with one another? JevBench asks in other words, "
        "in another order, for the opposite and for parts of the whole, and calls a law broken "
        f"beyond 0.05. Here is the share of its tests that hold, in %, of `{overall['suite']}` "
        f"(JevBench {overall['jevbench']}; {overall['cases']} states) against a server with the "
        f"bundled adapters: overall {_percent(overall['score'])} "
        f"({_interval(overall['interval'])}, over redraws of the states). The others are "
        f"[published]({source}): the first, second and last of 21 open models, the one that is "
        "least often right, one with 2B parameters, and an answer that is always uniform. That one "
        "has the highest score of all and knows nothing, so that a score says little without the "
        "accuracy beside it. The suite has no labels to tell ours.\n\n"
        + markdown_table(head, [*rows, accuracy])
    )


def _doubt(lines: Sequence[Line]) -> str:
    accepted, others = (
        next(x for x in lines if x["measure"] == "accepted" and x["accepted"] is own)
        for own in (True, False)
    )
    said = "The policy accepts none of these answers."
    if accepted["n"]:
        said = f"Where all answers of a test are accepted, {_share(accepted)} are."
    table = markdown_table(
        ("doubt by", "low third", "middle third", "high third", "AUROC"),
        [
            (
                line["doubt"],
                *(_share(third) for third in line["thirds"]),
                _auroc(line),
            )
            for line in lines
            if line["measure"] == "doubt"
        ],
    )
    return (
        "Does doubt know where the incoherence is? Of the laws that answers were tested for, "
        f"{_share(others)} are broken, in %, with a 95 % interval over redraws of the states. "
        f"{said} Below, by the greatest doubt among the answers that a test compares. Some laws "
        "are hard for any answer, so a test is ranked among those of its own law, and the AUROC is "
        "of pairs within a law: 0.5 is chance, and above it the answers that break a law are the "
        f"more doubtful ones.\n\n{table}"
    )


def _percent(score: float | None) -> str:
    return "" if score is None else f"{100 * score:.1f}"


def _auroc(line: Line) -> str:
    if line["auroc"] is None:
        return "no pairs"
    low, high = line["interval"]
    return f"{line['auroc']:.3f} ({low:.3f} to {high:.3f})"


def _interval(ends: Sequence[float] | None) -> str:
    if ends is None:
        return "no interval"
    low, high = ends
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _share(found: Line) -> str:
    return f"{_percent(found['share'])} ({_interval(found['interval'])}; n {found['n']:,})"


if __name__ == "__main__":
    main()
