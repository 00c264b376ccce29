"""What every benchmark shares: the record of the machine, the JSON, the table, the figure."""

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from dalorra.adapter.manifest import library_versions
from training.environment import hardware

Line = Mapping[str, Any]
"""A measurement as its JSON has it."""


def arguments(module: str, results: str) -> argparse.ArgumentParser:
    """Of a benchmark: `--json` is where its results go. `module` is its docstring."""
    parser = argparse.ArgumentParser(description=module.partition("\n")[0])
    default = Path("benchmarks/results") / f"{results}.json"
    parser.add_argument("--json", type=Path, default=default)
    return parser


def write_section(module: str, name: str, section: Callable[[Path], str]) -> None:
    """Writes a part of `docs/results.md` where the report finds it.

    Args:
        module: docstring of the benchmark.
        name: of the part's folder.
        section: makes it, from the folder of the JSON files.
    """
    parser = argparse.ArgumentParser(description=module.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    default = Path("benchmarks/results/experiments") / name / "SECTION.md"
    parser.add_argument("--out", type=Path, default=default)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(section(options.results), "utf-8")


def parts_of(results: Path, parts: Mapping[str, Callable[[Sequence[Line]], str]]) -> str:
    """The parts whose measurements are there, one after the other.

    Args:
        results: folder of the JSON files.
        parts: name of a file → makes Markdown of its lines.
    """
    found = ((part, results / f"{name}.json") for name, part in parts.items())
    return "\n".join(part(read_json(path)) for part, path in found if path.exists())


def write_json(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """A list of measurements, each with the hardware and versions it was taken with.

    Lines that were read from such a file keep theirs.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    context = {"hardware": hardware(), "versions": library_versions()}
    lines = [
        {**result, **{k: v for k, v in context.items() if k not in result}} for result in results
    ]
    path.write_text(json.dumps(lines, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> list[dict[str, Any]]:
    """What `write_json` wrote."""
    lines: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return lines


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def print_table(title: str, results: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """The chosen columns of the measurements on the terminal."""
    machine = hardware()
    name = machine.get("gpu", machine["processor"])
    table = Table(title=f"{title} ({name}, {machine['threads']} threads)")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for result in results:
        table.add_row(*(_cell(result.get(column)) for column in columns))
    Console().print(table)


def save_figure(figure: Figure, path: Path) -> None:
    """PNG on white, with one legend for all panels, under them, where it hides no curve."""
    found = {
        label: line
        for axes in figure.axes
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        found.values(),
        found.keys(),
        loc="outside lower center",
        ncols=min(len(found), 3),
        frameon=False,
        fontsize=8,
    )
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E6E6E6", linewidth=0.6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})


def interleaved(
    contenders: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 2
) -> dict[str, dict[str, float]]:
    """Times contenders in turn, A B C A B C …, so that a drift of the machine hits all alike.

    Returns:
        name → median, quartiles and ratio to the first contender (median of the ratios round by
        round); times in milliseconds.
    """
    for run in contenders.values():
        for _ in range(warm_up):
            run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            started = perf_counter()
            run()
            times[name].append(1e3 * (perf_counter() - started))
    first = next(iter(times.values()))
    summary = {}
    for name, taken in times.items():
        low, median, high = statistics.quantiles(taken, n=4)
        ratios = [own / reference for own, reference in zip(taken, first, strict=True)]
        summary[name] = {
            "median_ms": median,
            "quartile_low_ms": low,
            "quartile_high_ms": high,
            "ratio_to_single": statistics.median(ratios),
        }
    return summary


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
