"""Figures of an experiment, each as SVG and PNG."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.experiments.panels import legend, style, styles_of
from training.experiments.plane import INPUTS
from training.experiments.results import (
    Result,
    Results,
    Score,
    Summary,
    is_deterministic,
    relative_work,
)
from training.experiments.spec import Experiment
from training.figures import PALETTE, clean_axes, save_figure

_ACCURACY = Score("accuracy", "accuracy", percent=True, low=False)
_NLL = Score("NLL (nats)", "nll")
_BRIER = Score("Brier score", "brier")
_ECE = Score("ECE", "ece", percent=True)
_CHANCE = Score("ECE by chance", "ece_by_chance", percent=True)
_CURVES = (_ACCURACY, _ECE, _NLL)


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
        if not all(is_deterministic(run) for run in found.runs):
            yield "Error by variance decile", _save(by_decile(found), folder, f"{name}_variance")
    else:
        yield "NLL and ECE on the hold-out", _save(_dots(found, "holdout"), folder, name)
    if all("tempered" in run for run in found.runs):
        dots = _dots(found, "tempered")
        yield "NLL and ECE at the hold-out's temperature", _save(dots, folder, f"{name}_tempered")
    if frontier := by_work(found):
        yield "NLL and Brier score by work per answer", _save(frontier, folder, f"{name}_frontier")
    if planes := _planes(found):
        yield "Inputs in two dimensions, sized by variance", _save(planes, folder, f"{name}_plane")
    if maps := _mask_maps(found):
        yield "Posterior probabilities of the masks", _save(maps, folder, f"{name}_masks")


def _curves(experiment: Experiment, found: Results) -> Figure:
    """Scores along the experiment's axis; variants without a place on it are dashed lines.

    A dotted line is the ECE that perfect calibration would show by chance.
    """
    tasks = found.tasks
    figure = Figure(figsize=(3.4 * len(_CURVES), 2.7 * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), len(_CURVES), squeeze=False)
    for row, task in zip(panels, tasks, strict=True):
        variants = found.variants(task)
        for axes, score in zip(row, _CURVES, strict=True):
            series: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
            for variant in experiment.variants:
                runs = variants.get(variant.name, [])
                mean = _mean(runs, "test", score)
                if mean is None:
                    continue
                if variant.at is None:
                    axes.axhline(mean, color=PALETTE[1], linestyle="--", label=variant.name)
                else:
                    chance = _mean(runs, "test", _CHANCE) or 0.0
                    series[variant.series].append((variant.at, mean, chance))
            for i, (name, points) in enumerate(series.items()):
                x, y, by_chance = zip(*points, strict=True)
                axes.plot(x, y, **style(i), markersize=4, label=name)
                if score is _ECE:
                    axes.plot(x, by_chance, ":", color=style(i)["color"])
            axes.set(title=f"{task}: {score.name}", xlabel=experiment.axis)
            clean_axes(axes)
    panels[0, 0].legend(frameon=False, fontsize=8)
    return figure


def _dots(found: Results, where: str) -> Figure:
    """NLL and ECE of every variant with its spread over seeds, one row of panels for each task.

    A bar beside an ECE is what perfect calibration would show by chance.
    """
    tasks, scores = found.tasks, (_NLL, _ECE)
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
                if score is _ECE and (chance := _mean(variants[name], where, _CHANCE)) is not None:
                    axes.plot([factor * chance], [place], "|", color="#808080", markersize=9)
            axes.set_yticks(range(len(names)), names if axes is row[0] else [""] * len(names))
            axes.set_title(f"{task}: {score.name}{' (%)' if score.percent else ''}", fontsize=9)
            clean_axes(axes)
            axes.grid(axis="x", color="#E6E6E6", linewidth=0.6)
    return figure


def by_decile(found: Results) -> Figure:
    """Error rate in groups of equal size by variance (BayesLoRA, Figure 3)."""
    tasks, styles = found.tasks, styles_of(found)
    figure = Figure(figsize=(3.6 * len(tasks), 3.3), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        for name, runs in found.variants(task).items():
            groups = [run["test"].get("error_by_variance") or [] for run in runs]
            if not groups[0] or is_deterministic(runs[0]):
                continue  # no variance to order by
            error = np.mean([[g["error"] for g in group] for group in groups], axis=0)
            deciles = np.arange(1, len(error) + 1)
            axes.plot(deciles, 100 * error, **styles[name], markersize=4, label=name)
        axes.set(title=task, xlabel="decile of the variance", ylabel="error (%)")
        clean_axes(axes)
    legend(figure, panels, columns=2 * len(tasks))
    return figure


def by_work(found: Results) -> Figure | None:
    """NLL and Brier score by the work of an answer, where variants differ in what they adapt."""
    if len({_adapted(run) for run in found.runs}) < 2:
        return None
    tasks, scores = found.tasks, (_NLL, _BRIER)
    styles = styles_of(found)
    figure = Figure(figsize=(9.0, 3.2 * len(tasks) + 0.8), layout="constrained")
    panels = figure.subplots(len(tasks), 2, squeeze=False)
    for row, task in zip(panels, tasks, strict=True):
        runs = [run for some in found.variants(task).values() for run in some]
        size = next(run["test"]["size"] for run in runs if "size" in run["test"])
        for axes, score in zip(row, scores, strict=True):
            _work_and_loss(axes, found.variants(task), size, score, styles)
            axes.set_title(f"{task}: {score.name}", fontsize=9)
    legend(figure, panels.flat, columns=2, size=8)
    return figure


def _work_and_loss(
    axes: Axes,
    variants: Mapping[str, list[Result]],
    size: Mapping[str, float],
    score: Score,
    styles: Mapping[str, Mapping[str, Any]],
) -> None:
    means: list[tuple[float, float]] = []
    for name, runs in variants.items():
        work = relative_work(runs[0], size)
        losses = [v for v in (_value(run, "test", score) for run in runs) if v is not None]
        if not losses:
            continue
        means.append((work, fmean(losses)))
        one_by_one = {**styles[name], "linestyle": "", "alpha": 0.5}
        axes.plot([work] * len(losses), losses, **one_by_one, markersize=3)
        axes.plot(*means[-1], **styles[name], linestyle="", markersize=7, label=name)
    work_of, loss_of = zip(*undominated(means), strict=True)
    axes.step(work_of, loss_of, where="post", color="#999999", zorder=0)
    axes.set(xscale="log", xlabel="rows of layers per answer, one plain pass = 1")
    clean_axes(axes)


def _adapted(run: Result) -> tuple[object, object]:
    adapter = run["config"]["adapter"]
    return adapter["scope"], adapter["last_layers"]


def undominated(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (work, loss) that no other beats at the same work or less, by rising work."""
    kept: list[tuple[float, float]] = []
    for work, loss in sorted(points):
        if not kept or loss < kept[-1][1]:
            kept.append((work, loss))
    return kept


def _planes(found: Results) -> Figure | None:
    """Inputs by the components of their hidden states, sized by variance (BayesLoRA, Figure 2)."""
    first: dict[str, Result] = {}
    for run in found.runs:
        if run["task"] == found.tasks[0] and "plane" in run and not is_deterministic(run):
            first.setdefault(run["variant"], run)
    if not first:
        return None
    figure = Figure(figsize=(4.2 * len(first), 4.4), layout="constrained")
    panels = figure.subplots(1, len(first), squeeze=False)[0]
    for axes, (name, run) in zip(panels, first.items(), strict=True):
        _sized_by_variance(axes, run["plane"])
        largest = max(point["variance"] for point in run["plane"])
        axes.set(title=f"{name}, variance up to {largest:.2g}", xticks=[], yticks=[])
    legend(figure, panels)
    return figure


def _sized_by_variance(axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    largest = max(point["variance"] for point in points) or 1.0
    by_data: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for point in points:
        by_data[point["data"]].append(point)
    for i, (data, some) in enumerate(by_data.items()):
        colour, alone = style(i)["color"], data == INPUTS
        axes.scatter([], [], s=30, color=colour, label=data)  # the legend's, of one size
        axes.scatter(
            [point["x"] for point in some],
            [point["y"] for point in some],
            s=[4 + 150 * point["variance"] / largest for point in some],
            color=colour,
            alpha=1.0 if alone else 0.35,
            linewidth=0,
        )
        for number, point in enumerate(some if alone else (), 1):
            place = (point["x"], point["y"])
            axes.annotate(str(number), place, textcoords="offset points", xytext=(4, 4))
    clean_axes(axes)


def _mask_maps(found: Results) -> Figure | None:
    """σ(φ) by layer and rank component, for each module (DALorRA, Figures 4 and 7)."""
    chosen: dict[str, Result] = {}
    for run in found.runs:
        if run["variant"] == "DALorRA" and "mask_probabilities" in run["parameters"]:
            chosen.setdefault(run["task"], run)
    if not chosen:
        return None
    maps = {task: by_layer(run["parameters"]["mask_probabilities"]) for task, run in chosen.items()}
    kinds = list(dict.fromkeys(kind for grids in maps.values() for kind in grids))
    shown = [(task, kind) for kind in kinds for task in maps]
    layers = max(len(grid) for grids in maps.values() for grid in grids.values())
    columns = len(maps) if len(maps) > 1 else min(len(kinds), 3)
    lines = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(2.6 * columns, lines * (1.4 + 0.05 * layers)), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    image = None
    for axes in panels:
        axes.set_axis_off()
    for axes, (task, kind) in zip(panels, shown, strict=False):
        if kind in maps[task]:
            axes.set_axis_on()
            image = axes.imshow(maps[task][kind], aspect="auto", cmap="viridis", vmin=0, vmax=1)
            axes.set(xlabel="component", ylabel="layer")
            axes.set_title(f"{task}\n{kind}", fontsize="small")
    if image is not None:
        figure.colorbar(image, ax=panels, label="σ(φ)", shrink=0.6)
    return figure


def by_layer(masks: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    """Module within its layer → `[layers, r]`; modules outside the layers are left out."""
    rows: dict[str, list[Sequence[float]]] = defaultdict(list)
    for name, row in masks.items():
        if found := re.search(r"\.layers?\.\d+\.(.+)", name):
            rows[found[1]].append(row)
    return {kind.removeprefix("self_attn."): np.array(grid) for kind, grid in rows.items()}


def _mean(runs: list[Result], where: str, score: Score) -> float | None:
    return Summary.of(_value(run, where, score) for run in runs).mean


def _value(run: Result, where: str, score: Score) -> float | None:
    return Score("", f"{where}.{score.key}").of(run)


def _save(figure: Figure, folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("svg", "png"):
        save_figure(figure, folder / f"{name}.{suffix}")
    return folder / f"{name}.png"
