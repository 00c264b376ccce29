"""Results as Markdown: one section for each experiment, in which only the findings are by hand.

They are in `FINDINGS.md` in the experiment's folder of results, and the section quotes that file
whole. A folder with a `SECTION.md` is a section that another program rendered.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

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
SCORES = (ACCURACY, *CALIBRATION, *DISCRIMINATION)
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
    "posteriors",
    "strengths",
    "posteriors_strengths",
    "scopes",
    "sensitivity",
    "random_masking",
    "rank",
    "bayeslora",
    "reasoning",
)

_INTRODUCTION = (
    "Rendered by `dalorra report` from what every run left; no number is written by hand. Each",
    "table is the mean over the seeds ± their standard deviation, the best in **bold**, the second",
    "<u>underlined</u>; a gap narrower than the deviations means nothing. ECE has 15 bins; *by",
    "chance* is the ECE that answers with the same confidences would have on average if they were",
    "perfectly calibrated (in figures a grey bar or a dotted line). An ECE near it cannot be told",
    "from none, so no ECE is marked as the best: methods are ranked by NLL, in nats, and by Brier",
    "score, which have no such floor. AUROC is how well 1 − p, or the variance, tells wrong",
    "answers from right ones; ρ is Spearman's between variance and error.",
    "",
    "*− first* is how far a score is above that of the method with the lowest NLL, on the same",
    "examples with the same seeds, with a 95 % interval (paired bootstrap over examples and",
    "seeds). One that holds zero shows no difference. With one seed it is about these two adapters",
    "and not about the methods; and the first was found on the same examples, which favours it.",
)
_WITHOUT_INTERVALS = "The answers of these runs were not kept: the gaps have no intervals."


def _section(experiment: Experiment, folder: Path, out: Path) -> list[str]:
    found = read_results(folder, [run.key for run in experiment.runs()])
    lines = [f"## {experiment.name.replace('_', ' ').capitalize()}", "", experiment.question, ""]
    lines += [*_provenance(found), ""]
    for task in found.tasks:
        lines += [*_task(found, task, in_order=experiment.axis is not None), ""]
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


def _task(found: Results, task: str, *, in_order: bool) -> list[str]:
    """One setting's tables; `in_order` keeps points of an axis in its order."""
    variants = found.variants(task)
    first = next(iter(variants.values()))[0]
    train, steps = first["examples"]["train"], first["training"]["steps"]
    sizes = f"{train:,} training examples, {steps:,} steps"
    if "test" not in first:
        title = f"### {task} ({sizes}; scored on the hold-out)"
        return [title, "", *_table(variants, "holdout", (ACCURACY, *CALIBRATION))]
    if not in_order:
        variants = by_nll(variants, "test")
    lines = [f"### {task} ({sizes}; {first['test']['n']:,} test examples)", ""]
    lines += [*_compared(variants, "test"), ""]
    lines += _table(variants, "test", (ACCURACY, *DISCRIMINATION))
    if "tempered" in first:
        n = first["examples"]["holdout"]
        lines += ["", f"At the temperature that fits the {n} hold-out examples best:", ""]
        tempered = by_nll(variants, "tempered")
        lines += [*_compared(tempered, "tempered"), ""]
        lines += _table(tempered, "tempered", (TEMPERATURE, *DISCRIMINATION))
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


def _compared(variants: dict[str, list[Result]], where: str) -> list[str]:
    """Calibration with the gaps to the lowest NLL, where the answers were kept."""
    best, runs_of_best = next(iter(by_nll(variants, where).items()))
    gaps = {
        name: differences(runs, runs_of_best, where)
        for name, runs in variants.items()
        if name != best
    }
    if not any(gaps.values()):
        missing = ["", _WITHOUT_INTERVALS] if gaps else []
        return [*_table(variants, where, CALIBRATION), *missing]
    beside = {
        key: [str(gap[key]) if (gap := gaps.get(name)) else "–" for name in variants]
        for key in LOSSES
    }
    return _table(variants, where, CALIBRATION, beside)


def _table(
    variants: dict[str, list[Result]],
    where: str,
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
