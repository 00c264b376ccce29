"""The command line: the one place where the method, the training and the service meet.

Every command imports what it needs when it runs, so that `--help` does not wait for torch, and
OpenMP is told before torch loads it how many threads there are and how they wait.
"""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dalorra.cli.adapters import export, fetch, info, pull, push
from dalorra.cli.asking import predict
from dalorra.cli.calibrating import calibrate
from dalorra.cli.console import EXIT_REFUSED, EXIT_SIGNALLED, refuse
from dalorra.cli.experiments import experiment, methods, report
from dalorra.cli.importing import import_lora
from dalorra.cli.questions import questions
from dalorra.cli.serving import hash_key, serve
from dalorra.cli.training import evaluate, novelty, train
from dalorra.errors import DalorraError, Interrupted
from dalorra.kernels import keep_few
from dalorra.threads import settle

__all__ = ["app"]


def _make_importable() -> None:
    """Puts the folder that holds `service` and `training` on `sys.path`.

    An environment that installs the client gets one top-level name, `dalorra`: a wheel carries the
    other two packages inside, in `_apps`. In a checkout they stand beside `dalorra`.
    """
    package = Path(__file__).parents[1]
    apps = package / "_apps"
    folder = str(apps if apps.is_dir() else package.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)


_make_importable()
settle()
keep_few()


class _OneSentence(TyperGroup):
    """Shows the project's own errors as one sentence on stderr, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that `ctx` names."""
        try:
            return super().invoke(ctx)
        except DalorraError as error:
            refuse(str(error))
        except Interrupted as stopped:
            refuse(str(stopped))
            raise typer.Exit(EXIT_SIGNALLED + stopped.signum) from None
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing in ("", "dalorra", "service", "training"):  # a fault of this package
                raise
            refuse(f"this needs {missing}; pip install 'dalorra-service[training]' brings it")
        raise typer.Exit(EXIT_REFUSED)


app = typer.Typer(
    cls=_OneSentence,
    no_args_is_help=True,
    add_completion=False,
    help="Decisions of a frozen Llama with an honest probability and a measure of doubt.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"dalorra {version('dalorra-service')}")
        except PackageNotFoundError:
            typer.echo("dalorra (run from a source tree that is not installed)")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """Decisions of a frozen Llama with an honest probability and a measure of doubt."""


for command in (
    fetch,
    predict,
    serve,
    hash_key,
    info,
    train,
    evaluate,
    novelty,
    calibrate,
    export,
    import_lora,
    push,
    pull,
    methods,
    experiment,
    report,
):
    app.command("import" if command is import_lora else None)(command)
app.add_typer(questions, name="questions")
