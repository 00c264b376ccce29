"""What the commands print, and the codes they exit with."""

import json
from typing import Any

import typer
from rich.console import Console

EXIT_REFUSED = 2
EXIT_NOTHING_QUALIFIES = 3


def refuse(sentence: str) -> None:
    """Shows on stderr why a command does not do what it was asked."""
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"error: {sentence}", style="red", markup=False, highlight=False)


def print_json(value: Any) -> None:
    """Prints `value` for people and programs."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
