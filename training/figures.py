"""Figures of an evaluation, as PNG: light background, colours that colour-blind readers tell apart.

Drawn through `Figure` objects, which leave matplotlib's global state and its display alone.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from dalorra.decision.metrics import FloatArray

# Okabe and Ito's palette; marker and dash repeat what the colour says.
BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#666666", "#222222"
PALETTE = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", GREY, "#8B5A2B", "#000000")
# Neither versions nor dates: the same numbers give the same file.
_METADATA: Mapping[str, Any] = {".png": {"Software": None}, ".svg": {"Date": None}}
_STYLES = ((BLUE, "o", "-"), (ORANGE, "s", "--"))


def reliability_figure(series: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Accuracy against confidence per bin, above the share of examples in each bin.

    Args:
        series: name → bins of `metrics.reliability_bins` as mappings; two at most. The
            shares are those of the first.
        path: PNG file to write.
    """
    figure = Figure(figsize=(4.6, 5.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    clean_axes(top)
    clean_axes(bottom)
    top.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="perfect calibration")
    for (name, bins), (colour, marker, dash) in zip(series.items(), _STYLES, strict=False):
        filled = [b for b in bins if b["count"]]
        top.plot(
            [b["confidence"] for b in filled],
            [b["accuracy"] for b in filled],
            color=colour,
            marker=marker,
            markersize=5,
            linestyle=dash,
            linewidth=1.5,
            label=name,
        )
    top.set(ylabel="accuracy", ylim=(-0.02, 1.02), xlim=(0, 1))
    top.legend(frameon=False, loc="upper left")
    first = next(iter(series.values()))
    total = sum(b["count"] for b in first)
    bottom.bar(
        [b["lower"] for b in first],
        [b["count"] / total for b in first],
        width=[b["upper"] - b["lower"] for b in first],
        align="edge",
        color=BLUE,
        edgecolor="white",
        linewidth=0.8,
    )
    bottom.set(xlabel="confidence (probability of the predicted label)", ylabel="examples")
    bottom.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    save_figure(figure, path)


def risk_coverage_figure(
    curves: Mapping[str, tuple[FloatArray, FloatArray]],
    path: Path,
    *,
    chosen: Mapping[str, Any] | None = None,
) -> None:
    """Error rate among the most certain examples against their share.

    Args:
        curves: name → coverage and risk of `metrics.risk_coverage_curve`; two at most.
        path: PNG file to write.
        chosen: `share` and `error` of what the policy accepts, to be marked; not if it is nothing.
    """
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.subplots()
    clean_axes(axes)
    for (name, (coverage, risk)), (colour, _, dash) in zip(curves.items(), _STYLES, strict=False):
        axes.plot(coverage, risk, color=colour, linestyle=dash, linewidth=1.6, label=name)
    if chosen and chosen["error"] is not None:
        axes.plot(
            chosen["share"], chosen["error"], "D", color=BLACK, markersize=6, label="the policy"
        )
    axes.set(xlabel="share of examples accepted", ylabel="error among accepted", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(frameon=False, title="most certain first")
    save_figure(figure, path)


def acceptance_figure(series: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Largest share that can be accepted with at most 1, 2, 5, … percent error, as bars.

    Args:
        series: name → error level → share; three at most, with the same levels.
        path: PNG file to write.
    """
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    clean_axes(axes)
    axes.grid(visible=False, axis="x")
    width = 0.8 / len(series)
    for number, (name, shares) in enumerate(series.items()):
        bars = axes.bar(
            [place + (number - (len(series) - 1) / 2) * width for place in range(len(shares))],
            list(shares.values()),
            width=0.92 * width,
            color=(BLUE, ORANGE, "#B3B3B3")[number],
            label=name,
        )
        axes.bar_label(bars, fmt=lambda share: f"{100 * share:.0f}", fontsize=7, padding=1)
    levels = [f"{100 * float(level):g} %" for level in next(iter(series.values()))]
    axes.set_xticks(range(len(levels)), levels)
    axes.set(xlabel="error among accepted, at most", ylabel="share of examples", ylim=(0, 1.05))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(frameon=False, loc="outside upper center", ncols=len(series), fontsize=8)
    save_figure(figure, path)


def decisions_figure(decisions: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """How many answers get each decision, and the accuracy among them with its 95 % interval.

    Args:
        decisions: decision → `n`, `share`, `accuracy` and `interval`, as in `metrics.json`.
        path: PNG file to write.
    """
    figure = Figure(figsize=(6.4, 2.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    colours = (GREEN, ORANGE, BLUE)
    for place, (part, colour) in enumerate(zip(decisions.values(), colours, strict=False)):
        left.barh(place, part["share"], height=0.6, color=colour)
        left.annotate(
            f"{part['n']:,}",
            (part["share"], place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
        if part["accuracy"] is not None:
            low, high = part["interval"]
            right.plot([low, high], [place, place], color=colour, linewidth=2.4)
            right.plot(part["accuracy"], place, "o", color=colour, markersize=7)
    left.set_yticks(range(len(decisions)), list(decisions))
    left.invert_yaxis()
    left.set(xlabel="share of answers", xlim=(0, 1.12))
    right.set(xlabel="accuracy among them", xlim=(0, 1.02))
    for axes in (left, right):
        clean_axes(axes)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    save_figure(figure, path)


def clean_axes(axes: Axes) -> None:
    """Thin grid behind, no frame above and to the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)


def save_figure(figure: Figure, path: Path) -> None:
    """PNG or SVG, on white."""
    FigureCanvasAgg(figure)
    with rc_context({"svg.hashsalt": "dalorra"}):  # names of an SVG's parts are random otherwise
        figure.savefig(path, dpi=160, facecolor="white", metadata=_METADATA[path.suffix])


def training_figure(log: Path, path: Path) -> None:
    """Loss on the batches, penalty (KL), and NLL on the hold-out, over the gradient steps.

    Args:
        log: `log.jsonl` of a run.
        path: PNG file to write.
    """
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    series = (
        (top, "nll", BLUE, "o", "training batches"),
        (top, "eval_nll", ORANGE, "s", "hold-out, M samples"),
        (bottom, "penalty", BLUE, "o", "penalty"),
    )
    for axes, key, colour, marker, label in series:
        points = [(entry["step"], entry[key]) for entry in entries if key in entry]
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=colour, marker=marker, markersize=4, label=label)
    for axes in (top, bottom):
        clean_axes(axes)
    top.set(ylabel="NLL (nats per example)")
    top.legend(frameon=False)
    bottom.set(xlabel="gradient step", ylabel="penalty (nats)")
    save_figure(figure, path)
