"""The command line: the one place where the method, the training and the service meet.

Every command imports what it needs when it runs, so that `--help` does not wait for torch.
"""

import json
from dataclasses import asdict
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from dalorra.cli_options import (
    AdapterDir,
    BaseModelOption,
    DataSource,
    Device,
    Dtype,
    Split,
    TaskReference,
    assignments,
    numbers,
    set_aside,
)
from dalorra.errors import ConfigError, DalorraError

if TYPE_CHECKING:
    from training.tasks import Example

EXIT_REFUSED = 2
EXIT_NOTHING_QUALIFIES = 3


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


def _labelled(
    adapter: Path, trained_on: Any, data: Path | None, task: str | None, split: str | None
) -> tuple[str, str, "list[Example]"]:
    """Name of the task, split and examples, by default those that the adapter was trained for."""
    from training.tasks import load_examples, load_task

    reference = task or trained_on
    if reference is None:
        raise ConfigError(f"{adapter} does not say what it was trained on; name a task with --task")
    described = load_task(reference)
    split = split or described.evaluation_split
    return described.name, split, load_examples(described, split, data)


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
    prompt = predictor.encode(text if text is not None else assignments(field or (), "--field"))
    (prediction,) = predictor.predict([prompt])
    verdict = predictor.policy.decide(
        prediction.probability, prediction.variance, prediction.novelty
    )
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
    overrides: dict[str, Any] = dict(assignments(others or (), "--set"))
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
    assigned = assignments(overrides or (), "--set")
    from training.run import train as run_training

    typer.echo(run_training(config, resume=resume, overrides=assigned))


@app.command()
def evaluate(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder.")],
    data: DataSource = None,
    task: TaskReference = None,
    split: Split = None,
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

    trained_on = read_adapter(adapter).manifest.training.get("task")
    name, split, examples = _labelled(adapter, trained_on, data, task, split)
    predictor = Predictor.load(adapter, base_model, device=device, dtype=dtype)
    score(predictor, examples, out, task=f"{name} {split}")


@app.command()
def novelty(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder.")],
    data: DataSource = None,
    task: TaskReference = None,
    base_model: BaseModelOption = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Fit what tells novel inputs from those that the adapter was trained on; print the file.

    Needs the data that the adapter was trained on: its run held some of them out. A policy with a
    novelty level is void afterwards, if the features have changed: calibrate again.
    """
    from dalorra.adapter import read_adapter
    from dalorra.novelty import NOVELTY_FILE
    from dalorra.predictor import Predictor
    from training.novelty import fit_novelty, trained_and_held_out

    with set_aside(adapter / NOVELTY_FILE):  # it may be damaged or another adapter's
        training = read_adapter(adapter).manifest.training
        _, _, examples = _labelled(adapter, training.get("task"), data, task, "train")
        trained, held_out = trained_and_held_out(training, examples)
        predictor = Predictor.load(adapter, base_model, device=device, dtype=dtype)
        typer.echo(fit_novelty(predictor, trained, held_out).save(adapter))


@app.command()
def calibrate(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder.")],
    target_error: Annotated[
        float, typer.Option(help="Largest error rate (with costs: mean cost) among accepted.")
    ],
    confidence: Annotated[
        float, typer.Option(help="Probability, over the draw of the data, that it is kept.")
    ] = 0.95,
    data: DataSource = None,
    task: TaskReference = None,
    split: Split = None,
    class_target: Annotated[
        list[str] | None,
        typer.Option(help="label=rate, largest error rate where that label is accepted."),
    ] = None,
    cost: Annotated[
        list[str] | None,
        typer.Option(help="label=cost or true:label=cost of a false accept; others cost 1."),
    ] = None,
    temperature: Annotated[
        bool, typer.Option("--temperature", help="Fit one for the label logits, too.")
    ] = False,
    novelty_level: Annotated[
        float | None,
        typer.Option(
            help="Escalate inputs whose novelty p-value is lower; 0: none.",
            show_default="0.01 where the adapter has novelty features",
        ),
    ] = None,
    split_fraction: Annotated[
        float, typer.Option(help="Share that declares what is tested, and is not tested on.")
    ] = 0.1,
    out: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="the adapter's policy.json")
    ] = None,
    base_model: BaseModelOption = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Choose thresholds whose error among accepted answers stays within a target.

    Needs labelled data that the adapter was neither trained nor selected on. Exits with code 3,
    and writes a policy that accepts nothing, when no thresholds keep the target.
    """
    from dalorra.adapter import read_adapter
    from dalorra.novelty import DEFAULT_LEVEL
    from dalorra.predictor import Predictor
    from training.calibrate import calibrate as run_calibration
    from training.promise import Promise, promise_in_words

    promise = Promise(
        target_error,
        confidence,
        numbers(class_target or (), "--class-target"),
        numbers(cost or (), "--cost"),
    )
    read = read_adapter(adapter)
    manifest, novelty = read.manifest, read.novelty
    if novelty_level is None:
        novelty_level = DEFAULT_LEVEL if novelty else 0.0
    name, split, examples = _labelled(adapter, manifest.training.get("task"), data, task, split)
    if data is None and split == "train" and manifest.training.get("task") == name:
        raise ConfigError("the adapter was trained on that split: name another one with --split")
    policy = run_calibration(
        Predictor.load(adapter, base_model, device=device, dtype=dtype),
        examples,
        promise,
        source=f"{name} {split}",
        bank=manifest.bank.model_dump(),
        temperature=temperature,
        min_novelty_p=novelty_level,
        novelty_digest=novelty.digest if novelty else None,
        pilot_fraction=split_fraction,
        quiet=False,
    )
    policy.save(out or adapter)
    if policy.never_accepts:
        _refuse(promise_in_words(policy))
        raise typer.Exit(EXIT_NOTHING_QUALIFIES)
    typer.echo(promise_in_words(policy))


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
