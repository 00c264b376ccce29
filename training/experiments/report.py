"""Results as Markdown: a page that answers four questions, and the tables behind each experiment.

On the page an experiment has the scores that decide, its first figures and what was found. The
findings alone are by hand: they are in `FINDINGS.md` in the experiment's folder of results, and the
page quotes that file whole. `TABLES.md` beside it has every score. A folder with a `SECTION.md` is
a section that another program rendered.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from training.experiments.figures import draw
from training.experiments.paired import LOSSES, by_nll, differences
from training.experiments.results import (
    Result,
    Results,
    Score,
    Summary,
    is_deterministic,
    ranked,
    read_results,
)
from training.experiments.spec import EXPERIMENT_FILE, Experiment, load_experiment
from training.report import markdown_table

FINDINGS_FILE = "FINDINGS.md"
SECTION_FILE = "SECTION.md"
TABLES_FILE = "TABLES.md"

CALIBRATION = (
    Score("NLL", "nll"),
    Score("Brier", "brier"),
    Score("ECE %", "ece", percent=True, low=None),
    Score("by chance", "ece_by_chance", percent=True, low=None),
)
ACCURACY = Score("ACC %", "accuracy", percent=True, low=False)
DISCRIMINATION = (
    Score("AUROC 1 − p", "auroc_confidence", low=False),
    Score("AUROC variance", "auroc_variance", low=False),
    Score("ρ variance", "spearman_variance", low=False),
)
SELECTIVE = (
    Score("AURC %", "aurc_confidence", percent=True),
    Score("accepted %", "acceptance.0.05", percent=True, low=False),
)
SCORES = (ACCURACY, *CALIBRATION, *DISCRIMINATION, *SELECTIVE)
TEMPERATURE = Score("temperature", "temperature", low=None)
SHIFT_SCORES = tuple(
    Score(name, f"auroc_shift.{key}", low=False)
    for name, key in (
        ("variance", "variance"),
        ("mutual information", "mutual_information"),
        ("entropy", "entropy"),
        ("1 − p", "probability"),
    )
)


_CHAPTERS: Final = {
    "Is it better calibrated?": (
        "comparison",
        "tuned",
        "posteriors",
        "strengths",
        "posteriors_strengths",
        "scopes",
        "sensitivity",
        "random_masking",
        "rank",
        "bayeslora",
        "reasoning",
    ),
    "Does it know where it is wrong?": (
        "promise",
        "many_labels",
        "readouts",
        "coherence",
        "doubts",
    ),
    "Does it notice what is foreign?": ("foreign", "forged"),
    "What does it cost?": ("costs",),
}
"""Question → the experiments and sections that answer it, in order."""


def write_report(results: Path, out: Path) -> Path:
    """Renders every experiment that has results.

    Args:
        results: folder with one folder for each experiment; each gets its `TABLES.md`.
        out: Markdown file; figures go to `images/results` beside it.

    Raises:
        ConfigError: there are no results, or they are of an experiment that does not exist.
    """
    found = sorted(path.name for path in results.iterdir() if path.is_dir())
    known = {name for chapter in _CHAPTERS.values() for name in chapter}
    others = [name for name in found if name not in known]
    parts = ["# Results", "", *_INTRODUCTION]
    for chapter, names in {**_CHAPTERS, "What else was measured?": tuple(others)}.items():
        there = [name for name in names if name in found]
        if there:
            parts += ["", f"## {chapter}"]
        for name in there:
            parts += ["", *_part(results / name, out)]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return out


def _part(folder: Path, out: Path) -> list[str]:
    written = folder / SECTION_FILE
    if written.exists():  # its headings are one level deeper here
        return [re.sub(r"^(#+ )", r"#\1", written.read_text("utf-8").strip(), flags=re.MULTILINE)]
    return _experiment(load_experiment(str(folder / EXPERIMENT_FILE)), folder, out)


_INTRODUCTION = (
    "Rendered by `dalorra report` from what every run left; no number is written by hand. Each",
    "table is the mean over the seeds ± their standard deviation, the best in **bold**, the second",
    "<u>underlined</u>; a gap narrower than the deviations means nothing. ECE has 15 bins; *by",
    "chance* is the ECE that answers with the same confidences would have on average if they were",
    "perfectly calibrated (in figures a grey bar or a dotted line). An ECE near it cannot be told",
    "from none, so no ECE is marked as the best: methods are ranked by NLL, in nats, and by Brier",
    "score, which have no such floor. AUROC is how well 1 − p, or the variance, tells wrong",
    "answers from right ones; ρ is Spearman's between variance and error. *Accepted* is the share",
    "of the test set that a threshold on p could accept at an error of 5 %, chosen on these very",
    "answers, so that it is a limit; *AURC* is the mean error over all shares.",
    "",
    "*− first* is how far a score is above that of the method with the lowest NLL, on the same",
    "examples with the same seeds, with a 95 % interval (paired bootstrap over examples and",
    "seeds). One that holds zero shows no difference. With one seed it is about these two adapters",
    "and not about the methods; and the first was found on the same examples, which favours it.",
    "Tables without it are of runs whose answers were not kept.",
    "*C-LoRA* is a redesign of it ([how](../training/methods/c_lora.py)).",
    "*At a temperature* is the NLL with the label logits divided by the number that fits the",
    "hold-out best.",
)
_WITHOUT_INTERVALS = "The answers of these runs were not kept: the gaps have no intervals."
_ON_THE_PAGE: Final = 2
"""Figures of an experiment that the page shows; its tables have all."""


def _experiment(experiment: Experiment, folder: Path, out: Path) -> list[str]:
    """The page's part, after the experiment's own file of tables was written."""
    found = read_results(folder, [run.key for run in experiment.runs()])
    figures = list(draw(experiment, found, out.parent / "images" / "results"))
    title = experiment.name.replace("_", " ").capitalize()
    head = [experiment.question, "", *_provenance(found), ""]
    tables = [f"# {title}", "", *head]
    lines = [f"### {title}", "", *head]
    lines[-1:] = [f"[All scores]({_link(folder / TABLES_FILE, out)}).", ""]
    for task in found.tasks:
        tables += [*_task(found, task, in_order=experiment.axis is not None), ""]
        lines += _overview(found, task, in_order=experiment.axis is not None)
    tables += _shown(figures, folder / TABLES_FILE)
    lines += _shown(figures[:_ON_THE_PAGE], out)
    findings = folder / FINDINGS_FILE
    if findings.exists():
        lines += [findings.read_text(encoding="utf-8").strip(), ""]
    (folder / TABLES_FILE).write_text("\n".join(tables[:-1]) + "\n", encoding="utf-8")
    return lines[:-1]


def _shown(figures: Sequence[tuple[str, Path]], page: Path) -> list[str]:
    return [line for title, path in figures for line in (f"![{title}]({_link(path, page)})", "")]


def _link(file: Path, page: Path) -> str:
    return Path(os.path.relpath(file, page.parent)).as_posix()


def _provenance(found: Results) -> list[str]:
    machines = {
        f"{run['hardware'].get('gpu', run['hardware']['processor'])}, "
        f"{run['hardware']['threads']} threads"
        for run in found.runs
    }
    hours = sum(run["training"]["seconds"] for run in found.runs) / 3600
    libraries = found.runs[0]["versions"]
    return [
        f"`dalorra experiment {found.name}`: {len(found.runs)} runs, {hours:.1f} h of training,",
        f"{' and '.join(sorted(machines))}, torch {libraries['torch']},",
        f"transformers {libraries['transformers']}, peft {libraries['peft']}.",
        f"Base model `{found.runs[0]['config']['base_model']}`.",
    ]


def _overview(found: Results, task: str, *, in_order: bool) -> list[str]:
    """The scores that decide, in one table; of a grid on the hold-out the figure is enough."""
    variants = found.variants(task)
    first = next(iter(variants.values()))[0]
    if "test" not in first:
        return []
    if not in_order:
        variants = by_nll(variants, "test")
    scores = _of("test", (*CALIBRATION, ACCURACY, *DISCRIMINATION[:2], SELECTIVE[-1]))
    if "tempered" in first:
        scores.append(Score("at a temperature", "tempered.nll"))
    sizes = (
        f"{first['examples']['train']:,} training examples, {first['test']['n']:,} test examples"
    )
    return [f"**{task}** ({sizes}):", "", *_table(variants, scores, _gaps(variants, "test")), ""]


def _of(where: str, scores: Sequence[Score]) -> list[Score]:
    """The same scores of a part of a result."""
    return [replace(score, key=f"{where}.{score.key}") for score in scores]


def _task(found: Results, task: str, *, in_order: bool) -> list[str]:
    """One setting's tables; `in_order` keeps points of an axis in its order."""
    variants = found.variants(task)
    first = next(iter(variants.values()))[0]
    train, steps = first["examples"]["train"], first["training"]["steps"]
    sizes = f"{train:,} training examples, {steps:,} steps"
    if "test" not in first:
        title = f"### {task} ({sizes}; scored on the hold-out)"
        return [title, "", *_table(variants, _of("holdout", (ACCURACY, *CALIBRATION)))]
    if not in_order:
        variants = by_nll(variants, "test")
    lines = [f"### {task} ({sizes}; {first['test']['n']:,} test examples)", ""]
    lines += [*_compared(variants, "test"), ""]
    lines += _table(variants, _of("test", (ACCURACY, *DISCRIMINATION, *SELECTIVE)))
    if "tempered" in first:
        n = first["examples"]["holdout"]
        lines += ["", f"At the temperature that fits the {n} hold-out examples best:", ""]
        tempered = by_nll(variants, "tempered")
        lines += [*_compared(tempered, "tempered"), ""]
        lines += _table(tempered, _of("tempered", (TEMPERATURE, *DISCRIMINATION, *SELECTIVE)))
    for shift in first.get("shifts", {}):
        n = first["shifts"][shift]["n"]
        lines += ["", f"AUROC for telling {n} examples of {shift} from the test set:", ""]
        lines += _table(variants, _of(f"shifts.{shift}", SHIFT_SCORES))
        if "nll" in first["shifts"][shift]:
            lines += ["", f"Scores on {shift}, the same labels on other data:", ""]
            lines += _table(variants, _of(f"shifts.{shift}", SCORES))
    if "inputs" in first:
        lines += ["", *_inputs(variants)]
    return lines


def _compared(variants: dict[str, list[Result]], where: str) -> list[str]:
    """Calibration with the gaps to the lowest NLL, where the answers were kept."""
    gaps = _gaps(variants, where)
    missing = [] if gaps or len(variants) == 1 else ["", _WITHOUT_INTERVALS]
    return [*_table(variants, _of(where, CALIBRATION), gaps), *missing]


def _gaps(variants: dict[str, list[Result]], where: str) -> dict[str, list[str]]:
    """Key of a score → how far each variant is above the one with the lowest NLL."""
    best, runs_of_best = next(iter(by_nll(variants, where).items()))
    gaps = {
        name: differences(runs, runs_of_best, where)
        for name, runs in variants.items()
        if name != best
    }
    if not any(gaps.values()):
        return {}
    return {
        f"{where}.{key}": [str(gap[key]) if (gap := gaps.get(name)) else "–" for name in variants]
        for key in LOSSES
    }


def _table(
    variants: dict[str, list[Result]],
    scores: Sequence[Score],
    beside: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[str]:
    """Rows are variants, columns scores; `beside` has cells to the right of a score, by its key."""
    seeds = {name: len(runs) for name, runs in variants.items()}
    head = ["", "seeds"]
    cells: dict[str, list[str]] = {name: [name, str(seeds[name])] for name in variants}
    for score in scores:
        # Where no answer has a variance, an AUROC by it is one half and says nothing.
        blind = score.key.endswith(("variance", "mutual_information"))
        column = [
            Summary.of(score.of(run) for run in runs if not (blind and is_deterministic(run)))
            for runs in variants.values()
        ]
        places = ranked([summary.mean for summary in column], low=score.low)
        for name, summary, place in zip(variants, column, places, strict=True):
            text = score.show(summary)
            marks = {0: f"**{text}**", 1: f"<u>{text}</u>"} if len(variants) > 1 else {}
            cells[name].append(marks.get(place, text) if place is not None else text)
        head.append(score.name)
        if score.key in beside:
            head.append("− first")
            for row, cell in zip(cells.values(), beside[score.key], strict=True):
                row.append(cell)
    return markdown_table(head, cells.values())


def _inputs(variants: dict[str, list[Result]]) -> list[str]:
    """Answers to single texts, those of the first seed."""
    texts = [answer["input"] for answer in next(iter(variants.values()))[0]["inputs"]]
    rows = []
    for name, runs in variants.items():
        answers = runs[0]["inputs"]
        rows.append(
            [name, *(f"{a['label']} {a['probability']:.3f}, {a['variance']:.1e}" for a in answers)]
        )
    seed = next(iter(variants.values()))[0]["seed"]
    return [
        f"Label, probability and variance, seed {seed}:",
        "",
        *markdown_table(("", *texts), rows),
    ]
