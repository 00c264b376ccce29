"""Questions in words that an adapter's labels answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dalorra.errors import ConfigError

if TYPE_CHECKING:
    from dalorra.adapter.registered import RegisteredQuestion

questions = typer.Typer(
    no_args_is_help=True,
    help="Questions in words that an adapter's labels answer, with its policy's promise.",
)

AdapterArgument = Annotated[
    Path, typer.Argument(help="Adapter folder, or the name of a bundled one.", metavar="ADAPTER")
]
Words = Annotated[str, typer.Argument(help='Such as "Is this review positive?"', metavar="TEXT")]


@questions.command()
def add(
    adapter: AdapterArgument,
    text: Words,
    yes: Annotated[
        str | None,
        typer.Option(help="Label that means yes.", show_default="the one that the text names"),
    ] = None,
) -> None:
    """Register a question, or say anew which label means yes; a server reads it at its start."""
    from dalorra.adapter.registered import RegisteredQuestion, write_registered

    folder, labels, known = _read(adapter)
    new = RegisteredQuestion.about(labels, text, yes)
    write_registered(folder, [*(one for one in known if one.key != new.key), new])
    typer.echo(_described(new, labels))


@questions.command(name="list")
def list_(adapter: AdapterArgument) -> None:
    """Print the questions that an adapter answers."""
    _, labels, known = _read(adapter)
    for one in known:
        typer.echo(_described(one, labels))


@questions.command()
def remove(adapter: AdapterArgument, text: Words) -> None:
    """Forget a question."""
    from dalorra.adapter.registered import RegisteredQuestion, write_registered

    folder, labels, known = _read(adapter)
    gone = RegisteredQuestion.about(labels, text).key
    left = [one for one in known if one.key != gone]
    if len(left) == len(known):
        asked = ", ".join(repr(one.instructions) for one in known) or "none is registered"
        raise ConfigError(f"{folder} has no question {text!r}: {asked}")
    write_registered(folder, left)


def _read(adapter: Path) -> tuple[Path, Sequence[str], Sequence["RegisteredQuestion"]]:
    """The folder, its labels and its questions."""
    from dalorra.adapter.directory import bundled_adapter, registered_questions
    from dalorra.adapter.manifest import MANIFEST_FILE, read_manifest

    bundled = bundled_adapter().parent / adapter
    folder = bundled if not adapter.is_dir() and bundled.is_dir() else adapter
    if not (folder / MANIFEST_FILE).is_file():
        raise ConfigError(f"{folder} is no adapter: name a folder that `dalorra train` wrote")
    manifest = read_manifest(folder / MANIFEST_FILE)
    return folder, tuple(manifest.labelled.labels), registered_questions(folder, manifest)


def _described(registered: "RegisteredQuestion", labels: Sequence[str]) -> str:
    kinds = f"choice of {', '.join(labels)}"
    if registered.yes is not None:
        kinds = f"noul, yes is {registered.yes}; {kinds}"
    return f"{registered.instructions}  ({kinds})"
