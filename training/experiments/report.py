"""Results as Markdown: one section for each experiment, in which only the findings are by hand.

They are in `FINDINGS.md` in the experiment's folder of results, and the section quotes that file
whole. A folder with a `SECTION.md` is a section that another program rendered.
"""

from collections.abc import Sequence
from pathlib import Path

from training.experiments.figures import draw
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

SCORES = (
    Score("ACC %", "accuracy", percent=True, low=False),
    Score("ECE %", "ece", percent=True),
    Score("by chance", "ece_by_chance", percent=True, low=None),
    Score("NLL", "nll"),
    Score("Brier", "brier"),
    Score("AUROC 1 − p", "auroc_confidence", low=False),
    Score("AUROC variance", "auroc_variance", low=False),
    Score("ρ variance", "spearman_variance", low=False),
)
HOLDOUT_SCORES = tuple(score for score in SCORES[:5] if score.key != "ece_by_chance")
TEMPERED_SCORES = (Score("temperature", "temperature", low=None), *SCORES[1:])
SHIFT_SCORES = tuple(
    Score(name, f"auroc_shift.{key}", low=False)
    for name, key in (
        ("variance", "variance"),
        ("mutual information", "mutual_information"),
        ("entropy", "entropy"),
        ("1 − p", "probability"),
    )
)


def write_report(results: Path, out: Path) -> Path:
    """Renders every experiment that has results.

    Args:
        results: folder with one folder for each experiment.
        out: Markdown file; figures go to `images/results` beside it.

    Raises:
        ConfigError: there are no results, or they are of an experiment that does not exist.
    """
    names = [name for name in _ORDER if (results / name).is_dir()]
    names += sorted(
        path.name for path in results.iterdir() if path.is_dir() and path.name not in names
    )
    parts = ["# Results", "", *_INTRODUCTION]
    for name in names:
        written = results / name / SECTION_FILE
        if written.exists():
            parts += ["", written.read_text(encoding="utf-8").strip()]
            continue
        described = load_experiment(str(results / name / EXPERIMENT_FILE))
        parts += ["", *_section(described, results / name, out)]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return out


_ORDER = (
    "comparison",
    "tuned",
    "strengths",
    "scopes",
    "sensitivity",
    "random_masking",
    "rank",
    "bayeslora",
    "reasoning",
)

_INTRODUCTION = (
    "Rendered by `dalorra report` from the JSON of every run; no number is written by hand. Each",
    "table is the mean over the seeds ± their standard deviation, the best in **bold**, the second",
    "<u>underlined</u>; a gap narrower than the deviations means nothing. ECE has 15 bins; *by",
    "chance* is the ECE that answers with the same confidences would have on average if they were",
    "perfectly calibrated, and an ECE near it cannot be told from none. NLL, in nats, and Brier",
    "score have no such floor: by them the methods are compared. AUROC is how well 1 − p, or the",
    "variance, tells wrong answers from right ones; ρ is Spearman's between variance and error.",
)


def _section(experiment: Experiment, folder: Path, out: Path) -> list[str]:
    found = read_results(folder, [run.key for run in experiment.runs()])
    lines = [f"## {experiment.name.replace('_', ' ').capitalize()}", "", experiment.question, ""]
    lines += [*_provenance(found), ""]
    for task in found.tasks:
        lines += [*_task(found, task), ""]
    for title, path in draw(experiment, found, out.parent / "images" / "results"):
        lines += [f"![{title}]({path.relative_to(out.parent).as_posix()})", ""]
    findings = folder / FINDINGS_FILE
    if findings.exists():
        lines += [findings.read_text(encoding="utf-8").strip(), ""]
    return lines[:-1]


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


def _task(found: Results, task: str) -> list[str]:
    variants = found.variants(task)
    first = next(iter(variants.values()))[0]
    train, steps = first["examples"]["train"], first["training"]["steps"]
    sizes = f"{train:,} training examples, {steps:,} steps"
    where, scores = ("test", SCORES) if "test" in first else ("holdout", HOLDOUT_SCORES)
    scored = (
        f"{first['test']['n']:,} test examples" if where == "test" else "scored on the hold-out"
    )
    lines = [f"### {task} ({sizes}; {scored})", ""]
    lines += _table(variants, where, scores)
    if "tempered" in first:
        n = first["examples"]["holdout"]
        lines += ["", f"At the temperature that fits the {n} hold-out examples best:", ""]
        lines += _table(variants, "tempered", TEMPERED_SCORES)
    for shift in first.get("shifts", {}):
        n = first["shifts"][shift]["n"]
        lines += ["", f"AUROC for telling {n} examples of {shift} from the test set:", ""]
        lines += _table(variants, f"shifts.{shift}", SHIFT_SCORES)
        if "nll" in first["shifts"][shift]:
            lines += ["", f"Scores on {shift}, the same labels on other data:", ""]
            lines += _table(variants, f"shifts.{shift}", SCORES)
    if "inputs" in first:
        lines += ["", *_inputs(variants)]
    return lines


def _table(variants: dict[str, list[Result]], where: str, scores: Sequence[Score]) -> list[str]:
    seeds = {name: len(runs) for name, runs in variants.items()}
    cells: dict[str, list[str]] = {name: [name, str(seeds[name])] for name in variants}
    for score in scores:
        # Where no answer has a variance, an AUROC by it is one half and says nothing.
        blind = score.key.endswith(("variance", "mutual_information"))
        column = [
            Summary.of(
                Score("", f"{where}.{score.key}").of(run)
                for run in runs
                if not (blind and is_deterministic(run))
            )
            for runs in variants.values()
        ]
        places = ranked([summary.mean for summary in column], low=score.low)
        for name, summary, place in zip(variants, column, places, strict=True):
            text = score.show(summary)
            marks = {0: f"**{text}**", 1: f"<u>{text}</u>"} if len(variants) > 1 else {}
            cells[name].append(marks.get(place, text) if place is not None else text)
    return markdown_table(("", "seeds", *(score.name for score in scores)), cells.values())


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
