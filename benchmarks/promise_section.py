"""Whether a policy keeps its promise, and what that costs, as a part of `docs/results.md`.

    python -m benchmarks.promise_section [--results FOLDER] [--out FILE]
    dalorra report benchmarks/results/experiments

Reads what `benchmarks.promise` and `benchmarks.power` wrote, and measures nothing itself.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import Line, markdown_table, parts_of, write_section


def main() -> None:
    """Writes the part, where the report finds it."""
    write_section(__doc__, "promise", section)


def section(results: Path) -> str:
    """Markdown without a title of its own, headings from the second level.

    Args:
        results: folder with `promise.json` and `power.json`; a part whose file is missing is left
            out.
    """
    return parts_of(results, {"promise": _promise, "power": _power})


def _promise(lines: Sequence[Line]) -> str:
    table = markdown_table(
        (
            "target",
            "novelty level",
            "violations",
            "P(≥ as many)",
            "beyond chance",
            "nothing qualifies",
            "accepted",
            "error among them",
        ),
        (
            (
                f"{line['target_error']:g}",
                f"{line['novelty_level']:g}",
                f"{line['violations']} of {line['splits']}",
                f"{line['p_value']:.2f}",
                str(line["above_chance"]),
                str(line["nothing_qualifies"]),
                f"{line['mean_accepted']:.0%}",
                "–" if line["mean_error"] is None else f"{line['mean_error']:.1%}",
            )
            for line in lines
        ),
    )
    return f"""## The promise

`python -m benchmarks.promise`: a random half of the sst2 validation split
({lines[0]["calibrated_on"]} sentences) calibrates a policy at {lines[0]["confidence"]:.0%}
confidence, the other half counts what it accepts.

{table}

A *violation* is an error rate above target on the other half. That half is a sample, too: a policy
whose true error is just within its target is counted every other time, so these are more than the
promise allows for, which is about the true error. *Beyond chance* are the splits whose errors the
target cannot explain (exact binomial test at 5 %). P(≥ as many) is that of so many violations if
each split had a chance of 5 %; the splits share their sentences, so it is a yardstick. Against a
known truth the promise is tested in `tests/unit/training/test_risk_control.py`.
"""


def _power(lines: Sequence[Line]) -> str:
    names = list(dict.fromkeys(line["procedure"] for line in lines))
    by = {(x["task"], x["target_error"], x["n"], x["procedure"]): x for x in lines}
    settings = list(dict.fromkeys(key[:3] for key in by))
    table = markdown_table(
        ("task", "target", "n", *names, *(f"violations: {name}" for name in names)),
        (
            (
                task,
                f"{target:g}",
                str(n),
                *(f"{by[task, target, n, name]['accepted']:.1%}" for name in names),
                *(f"{by[task, target, n, name]['violations']:.1%}" for name in names),
            )
            for task, target, n in settings
        ),
    )
    worlds = {line["task"]: line for line in lines}
    described = "; ".join(
        f"{task} {line['split']}, {line['world']} inputs, {line['world_error']:.1%} wrong"
        for task, line in worlds.items()
    )
    return f"""## Few labelled examples

`python -m benchmarks.power`: {lines[0]["draws"]} draws of n labelled examples, with replacement,
from the answers of an adapter of each task ({described}). What a procedure accepts is judged on all
of these answers, so the true error is known; where the split was trained on, it is lower than that
of new inputs. MAPIE controls the precision of a threshold on the probability,
over its own 100 thresholds; its fixed sequence starts at the highest. Mean share accepted (nothing
accepted counts as 0), and the share of draws whose true error is above target, at
{lines[0]["confidence"]:.0%} confidence:

{table}
"""


if __name__ == "__main__":
    main()
