"""What tells inputs of another kind, as a part of `docs/results.md`.

    python -m benchmarks.foreign_section [--results FOLDER] [--out FILE]
    dalorra report benchmarks/results/experiments

Reads what `benchmarks.novelty` and `benchmarks.far_inputs` wrote, and measures nothing itself.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import far_inputs
from benchmarks.report import Line, markdown_table, parts_of, write_section
from benchmarks.shifts import FAR, NEAR

_SCORES = {
    "max_probability": "probability",
    "variance": "variance",
    "entropy": "entropy",
    "mutual_information": "mutual information",
    "novelty": "novelty",
    "combined": "combined",
}
_SINGLE = [score for score in _SCORES if score != "combined"]
_SHIFTS = {
    "ag_news": "news (ag_news)",
    "trec": "questions (trec)",
    "arc": "school exams (arc)",
    "random": "random tokens",
    "languages": "reviews, other languages",
    "shuffled": "reviews, words shuffled",
    "rotten_tomatoes": "other reviews (rotten_tomatoes)",
}


def main() -> None:
    """Writes the part, where the report finds it."""
    write_section(__doc__, "foreign", section)


def section(results: Path) -> str:
    """Markdown without a title of its own, headings from the second level.

    Args:
        results: folder with `novelty.json`, `far_inputs.json` and `novelty_choice.json`; a part
            whose file is missing is left out.
    """
    return parts_of(
        results,
        {"novelty": _far_away, "far_inputs": far_inputs.section, "novelty_choice": _choice},
    )


def _far_away(lines: Sequence[Line]) -> str:
    by = {(line["shift"], line["score"]): line for line in lines}
    shifts = [shift for shift in (*FAR, *NEAR) if (shift, "novelty") in by]
    usual = by[shifts[0], "combined"]
    auroc = markdown_table(
        ("inputs", *_SCORES.values()),
        (
            (_SHIFTS[s], *(_best(by, s, score, "auroc", max, ".3f") for score in _SCORES))
            for s in shifts
        ),
    )
    lead = markdown_table(
        ("inputs", "best single score", "combined − best", "95 % interval"),
        (
            (
                _SHIFTS[s],
                _SCORES[best := _best_single(by, s)],
                f"{by[s, 'combined']['auroc'] - by[s, best]['auroc']:+.3f}",
                "{:+.3f} to {:+.3f}".format(*by[s, "combined"]["ahead"]),
            )
            for s in shifts
        ),
    )
    false_alarms = markdown_table(
        ("inputs", *_SCORES.values()),
        (
            (_SHIFTS[s], *(_best(by, s, score, "fpr_at_95", min, ".0%") for score in _SCORES))
            for s in shifts
        ),
    )
    accepting = ("variance", "max_probability", "combined")
    accepted = markdown_table(
        ("accepted of", "variance alone", "without novelty", "as shipped"),
        [
            (
                "usual inputs",
                *(f"{by[shifts[0], a]['accepted_in_distribution']:.0%}" for a in accepting),
            ),
            *((_SHIFTS[s], *(f"{by[s, a]['accepted']:.0%}" for a in accepting)) for s in shifts),
        ],
    )
    sizes = ", ".join(str(by[s, "combined"]["n"]["out"]) for s in shifts)
    return f"""## Inputs of another kind

`python -m benchmarks.novelty`: the bundled adapter on {usual["n"]["in"]} reviews of the sst2
validation split and on inputs that are none ({sizes} of each, in the order of the table). Half of
rotten_tomatoes is in sst2; those sentences are left out. *Combined* is the shipped policy, traced
from its strictest to its loosest thresholds as calibration moves them: p ≥ τ and v ≤ κ τ (1 − τ),
and nothing below its novelty level ever. AUROC of usual inputs against the others, best in bold:

{auroc}

Lead of the combined policy in AUROC over the single score that is best on these very inputs, which
nobody knows beforehand. The interval is over the draw of both sets of inputs (paired bootstrap),
with the best single score found anew in each:

{lead}

Share of usual inputs that are at least as doubtful as 95 % of the others (false alarms at 95 %
detection):

{false_alarms}

What the shipped policy accepts; the same without its novelty level; and a limit on the variance
alone that accepts as many usual inputs as the shipped policy:

{accepted}

{_beside_the_best(by, shifts)} {_where_it_is_blind(by)}
"""


def _best_single(by: Mapping[tuple[str, str], Line], shift: str) -> str:
    return max(_SINGLE, key=lambda score: float(by[shift, score]["auroc"]))


def _beside_the_best(by: Mapping[tuple[str, str], Line], shifts: Sequence[str]) -> str:
    """In how many kinds of inputs the combined policy is ahead of, level with and behind it."""
    ends = {shift: by[shift, "combined"]["ahead"] for shift in shifts}
    places = {
        "ahead of": [shift for shift, (low, _) in ends.items() if low > 0.0],
        "level with": [shift for shift, (low, high) in ends.items() if low <= 0.0 <= high],
        "behind": [shift for shift, (_, high) in ends.items() if high < 0.0],
    }
    counted = "; ".join(
        f"{place} it on {len(found)} ({', '.join(_SHIFTS[shift] for shift in found)})"
        for place, found in places.items()
        if found
    )
    probable = sum(
        by[shift, "max_probability"]["auroc"] > by[shift, "combined"]["auroc"] for shift in shifts
    )
    return (
        f"Beside the best single score, the combined policy is {counted}. The probability alone "
        f"has a higher AUROC than it on {probable} of {len(shifts)}."
    )


def _where_it_is_blind(by: Mapping[tuple[str, str], Line]) -> str:
    shuffled = by["shuffled", "combined"]
    return (
        "Word order is where novelty is blind: reviews with their words shuffled "
        f"have a novelty AUROC of {by['shuffled', 'novelty']['auroc']:.2f}, and the policy accepts "
        f"{shuffled['accepted']:.0%} of them where it accepts "
        f"{shuffled['accepted_in_distribution']:.0%} of the reviews themselves."
    )


def _choice(lines: Sequence[Line]) -> str:
    scored = [line for line in lines if "auroc" in line]
    names = list(dict.fromkeys(line["score"] for line in scored))
    means = {
        name: tuple(
            fmean(line[key] for line in scored if line["score"] == name)
            for key in ("auroc", "detected_at_2")
        )
        for name in names
    }
    shifts = ", ".join(dict.fromkeys(line["shift"] for line in scored))
    ranked = sorted(names, key=lambda name: -means[name][0])
    table = markdown_table(
        ("feature, score, components", "AUROC", "detected at 2 % false alarms"),
        ((name, f"{means[name][0]:.3f}", f"{means[name][1]:.0%}") for name in ranked),
    )
    spelt = [line for line in lines if "escalated" in line]
    spelling = markdown_table(
        ("fitted with", "as written", "as sentences"),
        (
            (
                "`--augment " + kind + "`",
                *(
                    f"{line['escalated']:.1%}"
                    for shift in ("usual", "respelt")
                    for line in spelt
                    if line["shift"] == shift and line["score"].endswith(f": {kind}")
                ),
            )
            for kind in ("none", "orthography")
        ),
    )
    return f"""## Which score

Chosen on inputs that serve for nothing else ({shifts}): mean over them, fitted on
{scored[0]["n"]["train"]} training examples in two spellings each. *One third*, *two thirds* and
*answer* are the hidden states at the end of the answer cue after so many of the layers and after
all of them, *thirds* the sum of the scores of these three; *prompt* is that at the end of the
prompt, *ranks* the rank activations A·x of all adapted layers at the end of the cue. All but
*prompt* are means over the samples.

{table}

Another spelling alone, a capital, a full stop and natural spaces for the lower case of sst2, must
not be novel. Share of usual reviews with a p-value below {spelt[0]["level"]:g}, calibrated on
reviews as they are written:

{spelling}
"""


def _best(
    by: Mapping[tuple[str, str], Line], shift: str, score: str, key: str, best: Any, form: str
) -> str:
    value = by[shift, score][key]
    text = format(value, form)
    top = best(by[shift, other][key] for other in _SCORES)
    return f"**{text}**" if value == top else text


if __name__ == "__main__":
    main()
