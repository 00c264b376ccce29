"""What the commands print, and the codes they exit with."""

import json
from typing import Any

import typer
from rich.console import Console

EXIT_REFUSED = 2
EXIT_NOTHING_QUALIFIES = 3
EXIT_SIGNALLED = 128
"""Plus the number of the signal, as shells have it."""
EXIT_INTERRUPTED = EXIT_SIGNALLED + 2


def refuse(sentence: str) -> None:
    """Shows on stderr why a command does not do what it was asked."""
    note(f"error: {sentence}", style="red")


def note(sentence: str, style: str | None = None) -> None:
    """Shows on stderr what is no part of a command's result."""
    console = Console(stderr=True, soft_wrap=True)
    console.print(sentence, style=style, markup=False, highlight=False)


def print_json(value: Any) -> None:
    """Prints `value` for people and programs."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
