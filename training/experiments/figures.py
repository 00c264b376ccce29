"""Figures of an experiment, each as SVG and PNG."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure

from training.experiments.results import Result, Results, Score, Summary, is_deterministic
from training.experiments.spec import Experiment
from training.figures import PALETTE, clean_axes, save_figure

_CURVES = (
    Score("accuracy", "accuracy", percent=True, low=False),
    Score("ECE", "ece", percent=True),
    Score("NLL (nats)", "nll"),
)


def draw(experiment: Experiment, found: Results, folder: Path) -> Iterator[tuple[str, Path]]:
    """Draws what an experiment's results allow.

    Yields:
        a title and the PNG file of each figure.
    """
    name = experiment.name
    if experiment.axis is not None:
        yield f"Scores by {experiment.axis}", _save(_curves(experiment, found), folder, name)
    elif all("test" in run for run in found.runs):
        yield "NLL and ECE by method", _save(_dots(found, "test"), folder, name)
        yield "Error by variance decile", _save(_deciles(found), folder, f"{name}_variance")
    else:
        yield "NLL and ECE on the hold-out", _save(_dots(found, "holdout"), folder, name)
    if maps := _mask_maps(found):
        yield "Posterior probabilities of the masks", _save(maps, folder, f"{name}_masks")


def _curves(experiment: Experiment, found: Results) -> Figure:
    """Scores along the experiment's axis; variants without a place on it are dashed lines."""
    tasks = found.tasks
    figure = Figure(figsize=(3.4 * len(_CURVES), 2.7 * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), len(_CURVES), squeeze=False)
    for row, task in zip(panels, tasks, strict=True):
        variants = found.variants(task)
        for axes, score in zip(row, _CURVES, strict=True):
            series: dict[str, list[tuple[float, float]]] = defaultdict(list)
            for variant in experiment.variants:
                mean = _mean(variants.get(variant.name, []), "test", score)
                if mean is None:
                    continue
                if variant.at is None:
                    axes.axhline(mean, color=PALETTE[1], linestyle="--", label=variant.name)
                else:
                    series[variant.series].append((variant.at, mean))
            for (name, points), colour in zip(series.items(), PALETTE, strict=False):
                x, y = zip(*points, strict=True)
                axes.plot(x, y, color=colour, marker="o", markersize=4, label=name)
            axes.set(title=f"{task}: {score.name}", xlabel=experiment.axis)
            clean_axes(axes)
    panels[0, 0].legend(frameon=False, fontsize=8)
    return figure


def _dots(found: Results, where: str) -> Figure:
    """NLL and ECE of every variant with its spread over seeds, one row of panels for each task."""
    tasks, scores = found.tasks, (_CURVES[2], _CURVES[1])
    most = max(len(found.variants(task)) for task in tasks)
    figure = Figure(figsize=(9.0, len(tasks) * (0.8 + 0.24 * most)), layout="constrained")
    panels = figure.subplots(len(tasks), 2, squeeze=False)
    for row, task in zip(panels, tasks, strict=True):
        variants = found.variants(task)
        names = list(variants)[::-1]
        for axes, score in zip(row, scores, strict=True):
            factor = 100.0 if score.percent else 1.0
            for place, name in enumerate(names):
                values = [_value(run, where, score) for run in variants[name]]
                known = [factor * value for value in values if value is not None]
                ours = PALETTE[1] if name.startswith("DALorRA") else PALETTE[0]
                axes.plot(known, [place] * len(known), "o", color=ours, markersize=3, alpha=0.5)
                if known:
                    axes.plot([fmean(known)], [place], "D", color=ours, markersize=5)
            axes.set_yticks(range(len(names)), names if axes is row[0] else [""] * len(names))
            axes.set_title(f"{task}: {score.name}{' (%)' if score.percent else ''}", fontsize=9)
            clean_axes(axes)
            axes.grid(axis="x", color="#E6E6E6", linewidth=0.6)
    return figure


def _deciles(found: Results) -> Figure:
    """Error rate in groups of equal size by variance (BayesLoRA, Figure 3)."""
    tasks = found.tasks
    figure = Figure(figsize=(3.6 * len(tasks), 3.0), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        for (name, runs), colour in zip(found.variants(task).items(), PALETTE, strict=False):
            groups = [run["test"].get("error_by_variance") or [] for run in runs]
            if not groups[0] or is_deterministic(runs[0]):
                continue  # no variance, no order
            error = np.mean([[g["error"] for g in group] for group in groups], axis=0)
            axes.plot(
                np.arange(1, len(error) + 1), 100 * error, color=colour, marker=".", label=name
            )
        axes.set(title=task, xlabel="decile of the variance", ylabel="error (%)")
        clean_axes(axes)
    panels[-1].legend(frameon=False, fontsize=7, ncols=2)
    return figure


def _mask_maps(found: Results) -> Figure | None:
    """σ(φ) by layer and rank component, for each module (DALorRA, Figures 4 and 7)."""
    chosen: dict[str, Result] = {}
    for run in found.runs:
        if run["variant"] == "DALorRA" and "mask_probabilities" in run["parameters"]:
            chosen.setdefault(run["task"], run)
    if not chosen:
        return None
    kinds = ("q_proj", "v_proj")
    figure = Figure(figsize=(2.6 * len(chosen), 5.6), layout="constrained")
    panels = figure.subplots(len(kinds), len(chosen), squeeze=False)
    image = None
    for column, (task, run) in enumerate(chosen.items()):
        masks = run["parameters"]["mask_probabilities"]
        for axes, kind in zip(panels[:, column], kinds, strict=True):
            grid = np.array([row for name, row in masks.items() if name.endswith(kind)])
            image = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=0, vmax=1)
            axes.set(title=f"{task}: {kind}", xlabel="component", ylabel="layer")
    if image is not None:
        figure.colorbar(image, ax=list(panels.flat), label="σ(φ)", shrink=0.6)
    return figure


def _mean(runs: list[Result], where: str, score: Score) -> float | None:
    return Summary.of(_value(run, where, score) for run in runs).mean


def _value(run: Result, where: str, score: Score) -> float | None:
    return Score("", f"{where}.{score.key}").of(run)


def _save(figure: Figure, folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("svg", "png"):
        save_figure(figure, folder / f"{name}.{suffix}")
    return folder / f"{name}.png"
