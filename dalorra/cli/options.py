"""Options that several commands take."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from dalorra.errors import ConfigError

AdapterDir = Annotated[
    Path | None,
    typer.Option(
        "--adapter",
        help="Adapter folder, or owner/name@revision on the hub.",
        show_default="bundled sentiment",
    ),
]
AnyAdapter = Annotated[
    Path, typer.Argument(help="Adapter folder, or owner/name@revision on the hub.")
]
OwnAdapter = Annotated[Path, typer.Argument(help="Adapter folder; it is written into.")]
BaseModelOption = Annotated[
    str | None,
    typer.Option(
        help="smollm2-135m-instruct, all-minilm-l6-v2, a folder, a .gguf file, or a hub id.",
        show_default="the adapter's own",
    ),
]
DataSource = Annotated[
    Path | None,
    typer.Option(help="JSONL, JSON, CSV or Parquet file, or a folder.", show_default="the hub"),
]
TaskReference = Annotated[
    str | None,
    typer.Option(help="Built-in task or YAML file.", show_default="what it was trained on"),
]
Split = Annotated[
    str | None, typer.Option(help="Split of the data.", show_default="the task's own")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]
HandMadePolicies = Annotated[
    bool,
    typer.Option(
        "--hand-made-policies",
        help="Accept by thresholds, too, that are not as calibration wrote them.",
    ),
]


class Bits(StrEnum):
    """How linear modules of the base model are stored."""

    NONE = "none"
    EIGHT = "8bit"
    FOUR = "4bit"


def named(bits: Bits | None) -> Literal["none", "8bit", "4bit"] | None:
    """The same as a setting."""
    return bits.value if bits else None


Quantize = Annotated[
    Bits | None,
    typer.Option(
        help="Base model in none, 8bit or 4bit (bitsandbytes).",
        show_default="as the adapter was trained",
    ),
]


def assignments(pairs: Iterable[str], option: str) -> dict[str, str]:
    """What `option` assigns by `name=value`; refuses anything else with `ConfigError`."""
    assigned = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise ConfigError(f"{option} {pair!r} is no assignment; write {option} name=value")
        assigned[name] = value
    return assigned


def numbers(pairs: Iterable[str], option: str) -> dict[str, float]:
    """The same where the values are numbers."""
    assigned = {}
    for name, value in assignments(pairs, option).items():
        try:
            assigned[name] = float(value)
        except ValueError:
            raise ConfigError(f"{option} {name}={value} is no number") from None
    return assigned


@contextmanager
def set_aside(path: Path) -> Iterator[None]:
    """Moves a file out of the way of its successor; puts it back when there is none."""
    aside = path.with_name(f".{path.name}.old")
    if path.exists():
        path.replace(aside)
    try:
        yield
    finally:
        if path.exists():
            aside.unlink(missing_ok=True)
        elif aside.exists():
            aside.replace(path)
