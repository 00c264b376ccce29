"""What the panels of a figure share: a style for each variant, and one legend."""

from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.experiments.results import Results
from training.figures import PALETTE

_MARKERS = "osD^vP*X"


def style(number: int) -> dict[str, Any]:
    """Colour and marker of the n-th series; no two of dozens are alike."""
    return {
        "color": PALETTE[number % len(PALETTE)],
        "marker": _MARKERS[number % len(_MARKERS)],
    }


def styles_of(found: Results) -> dict[str, dict[str, Any]]:
    """Variant → its style in every panel; a task need not have all of them."""
    variants = dict.fromkeys(run["variant"] for run in found.runs)
    return {variant: style(number) for number, variant in enumerate(variants)}


def legend(
    figure: Figure, panels: Iterable[Axes], columns: int | None = None, size: float = 10.0
) -> None:
    """One entry below the figure for each name that any panel shows.

    Args:
        figure: gets the legend.
        panels: of the figure.
        columns: of the legend; None: one row.
        size: of its text, points.
    """
    pairs = (zip(*axes.get_legend_handles_labels(), strict=True) for axes in panels)
    shown = {name: handle for panel in pairs for handle, name in panel}
    figure.legend(
        shown.values(),
        shown,
        loc="outside lower center",
        ncols=columns or len(shown),
        frameon=False,
        fontsize=size,
    )
