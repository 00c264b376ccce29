"""The command line: the one place where the method, the training and the service meet.

Every command imports what it needs when it runs, so that `--help` does not wait for torch.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from dalorra.errors import ConfigError, DalorraError

EXIT_REFUSED = 2


class ExportForm(StrEnum):
    """What `dalorra export` writes."""

    MEAN = "mean"
    BANK = "bank"


class _OneSentence(TyperGroup):
    """Shows the project's own errors as one sentence on stderr, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that `ctx` names."""
        try:
            return super().invoke(ctx)
        except DalorraError as error:
            _refuse(str(error))
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing in ("", "dalorra", "service", "training"):  # a fault of this package
                raise
            _refuse(f"this needs {missing}; pip install 'dalorra-service[training]' brings it")
        raise typer.Exit(EXIT_REFUSED)


app = typer.Typer(
    cls=_OneSentence,
    no_args_is_help=True,
    add_completion=False,
    help="Decisions of a frozen Llama with an honest probability and a measure of doubt.",
)

AdapterDir = Annotated[
    Path | None, typer.Option("--adapter", help="Adapter folder.", show_default="bundled sentiment")
]
BaseModelOption = Annotated[
    str | None,
    typer.Option(
        help="smollm2-135m-instruct, a folder, a .gguf file, or a hub id.",
        show_default="the adapter's own",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]


def _refuse(sentence: str) -> None:
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"error: {sentence}", style="red", markup=False, highlight=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"dalorra {version('dalorra-service')}")
        except PackageNotFoundError:
            typer.echo("dalorra (run from a source tree that is not installed)")
        raise typer.Exit


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _assignments(pairs: Iterable[str], option: str) -> dict[str, str]:
    assigned = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise ConfigError(f"{option} {pair!r} is no assignment; write {option} name=value")
        assigned[name] = value
    return assigned


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """Decisions of a frozen Llama with an honest probability and a measure of doubt."""


@app.command()
def fetch() -> None:
    """Download and convert the default base model, once; print its folder."""
    from dalorra.fetch import fetch as fetch_default

    typer.echo(fetch_default())


@app.command()
def predict(
    text: Annotated[str | None, typer.Argument(help="The input, for one-field templates.")] = None,
    field: Annotated[
        list[str] | None, typer.Option("--field", "-f", help="name=value, for templates with more.")
    ] = None,
    adapter: AdapterDir = None,
    base_model: BaseModelOption = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Answer one input and print the prediction as JSON."""
    if (text is None) == (not field):
        raise ConfigError("give either one text or --field name=value for each of its fields")
    from dalorra.predictor import Predictor

    predictor = Predictor.load(adapter, base_model, device=device, dtype=dtype)
    prompt = predictor.encode(text if text is not None else _assignments(field or (), "--field"))
    (prediction,) = predictor.predict([prompt])
    verdict = predictor.policy.decide(prediction.probability, prediction.variance)
    _print_json(
        asdict(prediction)
        | {"decision": verdict.decision, "reason": verdict.reason, "truncated": prompt.truncated}
        | {"model": predictor.model_name, "adapter": predictor.adapter_name}
    )


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option(help="TOML or YAML file of settings.")] = None,
    host: Annotated[str | None, typer.Option(help="Address; 0.0.0.0 for all.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 picks a free one.")] = None,
    adapter: AdapterDir = None,
    base_model: BaseModelOption = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.")] = None,
    log_format: Annotated[str | None, typer.Option(help="json or console.")] = None,
    others: Annotated[
        list[str] | None, typer.Option("--set", help="name=value, any other setting.")
    ] = None,
) -> None:
    """Start the server. Flags win over DALORRA_... variables, those over the file."""
    overrides: dict[str, Any] = dict(_assignments(others or (), "--set"))
    flags = {
        "host": host,
        "port": port,
        "adapter": adapter,
        "base_model": base_model,
        "device": device,
        "dtype": dtype,
        "log_format": log_format,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    if twice := sorted(given.keys() & overrides.keys()):
        raise ConfigError(f"{twice[0]} is given twice, by its own flag and by --set")
    from service.run import serve as run_server

    run_server(config=config, **given, **overrides)


@app.command()
def info(adapter: Annotated[Path, typer.Argument(help="Adapter folder.")]) -> None:
    """Verify an adapter folder and print what it says about itself as JSON."""
    from dalorra.adapter import read_adapter

    read = read_adapter(adapter)
    policy = read.policy.model_dump(mode="json") if read.policy else None
    _print_json(read.manifest.model_dump(mode="json") | {"digest": read.digest, "policy": policy})


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="name=value, e.g. optimizer.steps=100.")
    ] = None,
) -> None:
    """Train an adapter as CONFIG says and print its folder."""
    assigned = _assignments(overrides or (), "--set")
    from training.run import train as run_training

    typer.echo(run_training(config, resume=resume, overrides=assigned))


@app.command()
def evaluate(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder.")],
    data: Annotated[
        Path | None,
        typer.Option(help="JSONL, JSON, CSV or Parquet file, or a folder.", show_default="the hub"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Built-in task or YAML file.", show_default="what it was trained on"),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of the data.", show_default="the task's own")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for metrics, predictions and diagrams.")
    ] = None,
    base_model: BaseModelOption = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Score an adapter on labelled data."""
    from dalorra.adapter import read_adapter
    from dalorra.predictor import Predictor
    from training.evaluate import evaluate as score
    from training.tasks import load_examples, load_task

    reference = task or read_adapter(adapter).manifest.training.get("task")
    if reference is None:
        raise ConfigError(f"{adapter} does not say what it was trained on; name a task with --task")
    described = load_task(reference)
    split = split or described.evaluation_split
    examples = load_examples(described, split, data)
    predictor = Predictor.load(adapter, base_model, device=device, dtype=dtype)
    score(predictor, examples, out, task=f"{described.name} {split}")


@app.command()
def export(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    form: Annotated[
        ExportForm, typer.Option(help="mean: one LoRA; bank: one LoRA for each sample.")
    ] = ExportForm.MEAN,
) -> None:
    """Write an adapter as plain LoRA, which PEFT, vLLM and TGI run."""
    from dalorra.export import export_bank, export_mean

    typer.echo((export_mean if form is ExportForm.MEAN else export_bank)(adapter, out))
