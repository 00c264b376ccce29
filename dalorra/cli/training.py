"""Making an adapter, and finding out how good it is."""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dalorra.cli.console import EXIT_NOTHING_QUALIFIES, refuse
from dalorra.cli.options import (
    AnyAdapter,
    BaseModelOption,
    DataSource,
    Device,
    Dtype,
    OwnAdapter,
    Quantize,
    Split,
    TaskReference,
    assignments,
    named,
    numbers,
    set_aside,
)
from dalorra.errors import ConfigError

if TYPE_CHECKING:
    from dalorra.decision.policy import Policy
    from training.tasks import Example, Task


class Temperature(StrEnum):
    """When `dalorra calibrate` fits one."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


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
    adapter: AnyAdapter,
    data: DataSource = None,
    task: TaskReference = None,
    split: Split = None,
    spelling: Annotated[
        str,
        typer.Option(help="given, lower, sentence, exclamation, open, title, or mixed: one each."),
    ] = "given",
    out: Annotated[
        Path | None, typer.Option(help="Folder for metrics, predictions and diagrams.")
    ] = None,
    base_model: BaseModelOption = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
) -> None:
    """Score an adapter on labelled data."""
    from dalorra.adapter.directory import read_adapter
    from training.data import parted
    from training.evaluate import evaluate as score
    from training.load import load_evaluable
    from training.orthography import in_spelling

    trained_on = read_adapter(adapter).manifest.training.get("task")
    asked, split, examples = _labelled(adapter, trained_on, data, task, split, out_of_scope=True)
    inside, outside = (
        [in_spelling(example, spelling) for example in part]
        for part in parted(examples, asked.out_of_scope)
    )
    bits = named(quantize)
    predictor = load_evaluable(adapter, base_model, device=device, dtype=dtype, quantize=bits)
    said = f"{asked.name} {split}" + (f", {spelling} spelling" if spelling != "given" else "")
    score(predictor, inside, out, task=said, outside=outside)


def novelty(
    adapter: OwnAdapter,
    data: DataSource = None,
    task: TaskReference = None,
    augment: Annotated[
        Augmentation, typer.Option(help="orthography: another spelling alone is not novel.")
    ] = Augmentation.ORTHOGRAPHY,
    base_model: BaseModelOption = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
) -> None:
    """Fit what tells novel inputs from those that the adapter was trained on; print the file.

    Needs the data that the adapter was trained on: its run held some of them out. A policy with a
    novelty level is void afterwards, if the features have changed: calibrate again.
    """
    from dalorra.adapter.directory import read_adapter
    from dalorra.adapter.hub import own_folder
    from dalorra.decision.novelty import NOVELTY_FILE
    from dalorra.predictor import Predictor
    from training.novelty import fit_novelty, trained_and_held_out

    with set_aside(own_folder(adapter) / NOVELTY_FILE):  # it may be damaged or another adapter's
        training = read_adapter(adapter).manifest.training
        _, _, examples = _labelled(adapter, training.get("task"), data, task, "train")
        trained, held_out = trained_and_held_out(training, examples)
        bits = named(quantize)
        predictor = Predictor.load(adapter, base_model, device=device, dtype=dtype, quantize=bits)
        fitted = fit_novelty(predictor, trained, held_out, augment=augment.value)
        typer.echo(fitted.save(adapter))


def calibrate(
    adapter: OwnAdapter,
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
        Temperature,
        typer.Option(help="One for the label logits: fitted where it helps, always, or never."),
    ] = Temperature.AUTO,
    novelty_level: Annotated[
        float | None,
        typer.Option(
            help="Largest share of usual inputs to escalate for novelty; 0: no limit on novelty.",
            show_default="picked on texts of other kinds",
        ),
    ] = None,
    out_of_scope: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.9,
            help="Share of inputs that no label answers, taken from those of the task; accepted, "
            "each is an error.",
        ),
    ] = 0.0,
    look_again: Annotated[
        bool,
        typer.Option(
            "--look-again",
            help="Test on inputs that were tested on before, and promise less for it.",
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="the adapter's policy.json")
    ] = None,
    base_model: BaseModelOption = None,
    device: Device = "auto",
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            help="auto, float32 or bfloat16; repeat it for a promise that holds in each.",
            show_default="auto",
        ),
    ] = None,
    quantize: Quantize = None,
) -> None:
    """Choose thresholds whose error among accepted answers stays within a target.

    Needs labelled data that the adapter was neither trained nor selected on, and no calibration
    with other options has seen. Exits with code 3, and writes a policy that accepts nothing, when
    no thresholds keep the target.
    """
    from dalorra.adapter.directory import read_adapter
    from dalorra.adapter.hub import own_folder
    from dalorra.predictor import Predictor
    from service.feedback.export import read_labelled
    from training.calibrate import calibrate as run_calibration
    from training.data import mixed, parted
    from training.from_feedback import calibrate_from_feedback
    from training.looks import look_at, look_at_feedback, take_look
    from training.novelty import novelty_limit
    from training.off_domain import accepted_by_kind, off_domain_in_words
    from training.promise import Promise, promise_in_words

    promise = Promise(
        target_error,
        confidence,
        numbers(class_target or (), "--class-target"),
        numbers(cost or (), "--cost"),
    )
    read = read_adapter(own_folder(adapter))
    manifest, novelty = read.manifest, read.novelty
    level, *said = novelty_limit(novelty, novelty_level, confidence)
    settings: dict[str, Any] = {
        "novelty_level": level,
        "novelty_digest": novelty.digest if novelty and level else None,
    }
    if from_feedback is not None:
        if data or task or split or out_of_scope or temperature is not Temperature.AUTO:
            raise ConfigError(
                "--from-feedback brings labelled answers as they were served: leave out --data, "
                "--task, --split, --out-of-scope and --temperature"
            )
        served_at = read.policy.temperature if read.policy else 1.0
        answers = read_labelled(
            from_feedback,
            read.digest,
            temperature=served_at,
            samples=manifest.bank.samples,
            novelty_digest=settings["novelty_digest"],
        )
        policy = take_look(
            adapter,
            look_at_feedback(answers, read.digest, promise, settings | {"temperature": served_at}),
            lambda: calibrate_from_feedback(read, answers, promise, min_novelty_p=level),
            again=look_again,
        )
    else:
        trained_on = manifest.training.get("task")
        asked, split, examples = _labelled(
            adapter, trained_on, data, task, split, out_of_scope=out_of_scope > 0.0
        )
        if out_of_scope:
            examples = mixed(*parted(examples, asked.out_of_scope), out_of_scope)
        if data is None and split == "train" and trained_on == asked.name:
            raise ConfigError(
                "the adapter was trained on that split: name another one with --split"
            )
        first, *others = dtype or ["auto"]
        settings |= {"temperature": temperature.value, "dtype": [first, *others]}
        source = f"{asked.name} {split}"
        source += f", {out_of_scope:.0%} of them out of scope" if out_of_scope else ""
        load = partial(Predictor.load, adapter, base_model, device=device)
        if quantize:
            load = partial(load, quantize=quantize.value)
            settings["quantize"] = quantize.value

        def tested() -> "Policy":
            predictor = load(dtype=first)
            policy = run_calibration(
                predictor,
                examples,
                promise,
                source=source,
                bank=manifest.bank.identity,
                temperature=temperature.value,
                min_novelty_p=level,
                novelty_digest=novelty.digest if novelty else None,
                others=(load(dtype=other) for other in others),
                out_of_scope=asked.out_of_scope,
                quiet=False,
            )
            said.append(off_domain_in_words(accepted_by_kind(predictor)))
            return policy

        look = look_at(examples, read.digest, promise, settings, source)
        policy = take_look(adapter, look, tested, again=look_again)
    policy.save(out or adapter)
    if policy.never_accepts:
        refuse(promise_in_words(policy))
        raise typer.Exit(EXIT_NOTHING_QUALIFIES)
    typer.echo("\n".join(filter(None, [promise_in_words(policy), *said])))


def _labelled(
    adapter: Path,
    trained_on: Any,
    data: Path | None,
    task: str | None,
    split: str | None,
    *,
    out_of_scope: bool = False,
) -> tuple["Task", str, "list[Example]"]:
    """The task, split and examples, by default those that the adapter was trained for."""
    from training.tasks import load_examples, load_labelled_task

    reference = task or trained_on
    if reference is None:
        raise ConfigError(f"{adapter} does not say what it was trained on; name a task with --task")
    described = load_labelled_task(reference)
    split = split or described.evaluation_split
    return described, split, load_examples(described, split, data, out_of_scope=out_of_scope)
