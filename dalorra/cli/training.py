"""Making an adapter, and finding out how good it is."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dalorra.cli.console import EXIT_NOTHING_QUALIFIES, refuse
from dalorra.cli.options import (
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
from dalorra.errors import ConfigError

if TYPE_CHECKING:
    from dalorra.adapter.directory import Adapter
    from dalorra.decision.policy import Policy
    from training.promise import Promise
    from training.tasks import Example


class Augmentation(StrEnum):
    """What `dalorra novelty` fits beside the examples themselves."""

    ORTHOGRAPHY = "orthography"
    NONE = "none"


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
    from training.processes import Process
    from training.run import train as run_training

    folder = run_training(config, resume=resume, overrides=assigned)
    if Process.this().is_main:
        typer.echo(folder)


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
    from dalorra.adapter.directory import read_adapter
    from training.evaluate import evaluate as score
    from training.load import load_evaluable

    trained_on = read_adapter(adapter).manifest.training.get("task")
    name, split, examples = _labelled(adapter, trained_on, data, task, split)
    predictor = load_evaluable(adapter, base_model, device=device, dtype=dtype)
    score(predictor, examples, out, task=f"{name} {split}")


def novelty(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder.")],
    data: DataSource = None,
    task: TaskReference = None,
    augment: Annotated[
        Augmentation, typer.Option(help="orthography: another spelling alone is not novel.")
    ] = Augmentation.ORTHOGRAPHY,
    base_model: BaseModelOption = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Fit what tells novel inputs from those that the adapter was trained on; print the file.

    Needs the data that the adapter was trained on: its run held some of them out. A policy with a
    novelty level is void afterwards, if the features have changed: calibrate again.
    """
    from dalorra.adapter.directory import read_adapter
    from dalorra.decision.novelty import NOVELTY_FILE
    from dalorra.predictor import Predictor
    from training.novelty import fit_novelty, trained_and_held_out

    with set_aside(adapter / NOVELTY_FILE):  # it may be damaged or another adapter's
        training = read_adapter(adapter).manifest.training
        _, _, examples = _labelled(adapter, training.get("task"), data, task, "train")
        trained, held_out = trained_and_held_out(training, examples)
        predictor = Predictor.load(adapter, base_model, device=device, dtype=dtype)
        fitted = fit_novelty(predictor, trained, held_out, augment=augment.value)
        typer.echo(fitted.save(adapter))


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
    from_feedback: Annotated[
        Path | None,
        typer.Option(help="Feedback store of a server, in place of data.", show_default="none"),
    ] = None,
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
            help="Largest share of usual inputs to escalate for novelty; 0: no limit on novelty.",
            show_default="picked on texts of other kinds",
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
    from dalorra.adapter.directory import read_adapter
    from dalorra.predictor import Predictor
    from training.calibrate import calibrate as run_calibration
    from training.novelty import novelty_limit
    from training.off_domain import accepted_by_kind, off_domain_in_words
    from training.promise import Promise, promise_in_words

    promise = Promise(
        target_error,
        confidence,
        numbers(class_target or (), "--class-target"),
        numbers(cost or (), "--cost"),
    )
    read = read_adapter(adapter)
    manifest, novelty = read.manifest, read.novelty
    level, *said = novelty_limit(novelty, novelty_level, confidence)
    if from_feedback is not None:
        if temperature or data or task or split:
            raise ConfigError(
                "--from-feedback brings labelled answers as they were served: leave out --data, "
                "--task, --split and --temperature"
            )
        policy = _calibrated_from_feedback(read, from_feedback, promise, level, split_fraction)
    else:
        name, split, examples = _labelled(adapter, manifest.training.get("task"), data, task, split)
        if data is None and split == "train" and manifest.training.get("task") == name:
            raise ConfigError(
                "the adapter was trained on that split: name another one with --split"
            )
        predictor = Predictor.load(adapter, base_model, device=device, dtype=dtype)
        policy = run_calibration(
            predictor,
            examples,
            promise,
            source=f"{name} {split}",
            bank=manifest.bank.model_dump(),
            temperature=temperature,
            min_novelty_p=level,
            novelty_digest=novelty.digest if novelty else None,
            pilot_fraction=split_fraction,
            quiet=False,
        )
        said.append(off_domain_in_words(accepted_by_kind(predictor)))
    policy.save(out or adapter)
    if policy.never_accepts:
        refuse(promise_in_words(policy))
        raise typer.Exit(EXIT_NOTHING_QUALIFIES)
    typer.echo("\n".join(filter(None, [promise_in_words(policy), *said])))


def _calibrated_from_feedback(
    adapter: "Adapter", store: Path, promise: "Promise", novelty_level: float, fraction: float
) -> "Policy":
    from service.feedback.export import read_labelled
    from training.from_feedback import calibrate_from_feedback

    answers = read_labelled(
        store,
        adapter.digest,
        temperature=adapter.policy.temperature if adapter.policy else 1.0,
        samples=adapter.manifest.bank.samples,
        novelty_digest=adapter.novelty.digest if adapter.novelty and novelty_level else None,
    )
    return calibrate_from_feedback(
        adapter, answers, promise, min_novelty_p=novelty_level, pilot_fraction=fraction
    )


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
