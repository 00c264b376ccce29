"""The commands that compare methods."""

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from dalorra.cli.options import DataSource, assignments
from dalorra.errors import ConfigError

Results = Annotated[Path, typer.Option(help="Folder of the results.")]


def methods() -> None:
    """List the methods that can be trained, and where each can act, a line each."""
    from training.methods import METHODS

    lines = {f"method.name={method.key()}": method.title for method in METHODS}
    lines |= {
        "adapter.scope=all_tokens": "any of them on every token, M passes above the first layer",
        "adapter.scope=answer_tokens": "on the answer cue alone, one packed pass for all M",
        "adapter.last_layers=K": "in the last K layers alone",
    }
    width = max(map(len, lines))
    for setting, title in lines.items():
        typer.echo(f"{setting:{width}}  {title}")


def experiment(
    name: Annotated[str, typer.Argument(help="A shipped experiment, or a YAML file.")],
    data: DataSource = None,
    out: Results = Path("runs/experiments"),
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only this variant; may be repeated.")
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="Only this setting; may be repeated.")
    ] = None,
    keep_adapters: Annotated[
        bool, typer.Option("--keep-adapters", help="Keep every trained adapter.")
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="name=value, e.g. base_model=DIR.")
    ] = None,
) -> None:
    """Train and score every run of an experiment; run again, it goes on where it stopped."""
    from training.experiments import Runner, load_experiment
    from training.yaml_file import parse_yaml

    content: dict[str, Any] = {"data": {"source": str(data)}} if data is not None else {}
    for dotted, value in assignments(overrides or (), "--set").items():
        *sections, last = dotted.split(".")
        section = content
        for part in sections:
            section = section.setdefault(part, {})
        try:
            section[last] = parse_yaml(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{dotted}: {value!r} is not a YAML value") from error
    runner = Runner(load_experiment(name), out, content, keep_adapters=keep_adapters)
    for path in runner.run(only or (), tasks or ()):
        typer.echo(path)


def report(
    results: Annotated[Path, typer.Argument(help="Folder of experiments' results.")],
    out: Annotated[Path, typer.Option(help="Markdown file to write.")] = Path("docs/results.md"),
) -> None:
    """Render results as Markdown tables and figures."""
    from training.experiments.report import write_report

    typer.echo(write_report(results, out))
