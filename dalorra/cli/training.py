"""Making an adapter, and finding out how good it is."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dalorra.cli.labelled import Place
from dalorra.cli.options import (
    AnyAdapter,
    BaseModelOption,
    DataSource,
    Device,
    Dtype,
    HandMadePolicies,
    OwnAdapter,
    Quantize,
    Split,
    TaskReference,
    assignments,
    named,
    set_aside,
)

DEFAULT_TARGET = 0.1
"""Error among accepted that thresholds are scored at where the adapter's policy names none."""


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
    hand_made_policies: HandMadePolicies = False,
) -> None:
    """Score an adapter on labelled data."""
    from dalorra.adapter.directory import read_adapter
    from training.evaluate import evaluate as score
    from training.load import load_evaluable
    from training.orthography import in_spelling
    from training.promise import Promise
    from training.question_scores import Kinds

    found = Place(adapter, data, task, split).to_evaluate(read_adapter(adapter).manifest)
    inside, outside = (
        [in_spelling(example, spelling) for example in part]
        for part in (found.examples, found.outside)
    )
    said = found.source + (f", {spelling} spelling" if spelling != "given" else "")
    bits = named(quantize)
    predictor = load_evaluable(
        adapter,
        base_model,
        device=device,
        dtype=dtype,
        quantize=bits,
        hand_made_policies=hand_made_policies,
    )
    kinds = None
    if found.new_kinds is not None:
        promise = Promise(predictor.policy.target_error or DEFAULT_TARGET)
        kinds = Kinds(predictor, inside, found.new_kinds, promise)
    score(predictor, inside, out, task=said, outside=outside, more=kinds)


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
    from training.novelty import fit_novelty

    with set_aside(own_folder(adapter) / NOVELTY_FILE):  # it may be damaged or another adapter's
        trained, held_out = Place(adapter, data, task).to_fit(read_adapter(adapter).manifest)
        bits = named(quantize)
        predictor = Predictor.load(adapter, base_model, device=device, dtype=dtype, quantize=bits)
        fitted = fit_novelty(predictor, trained, held_out, augment=augment.value)
        typer.echo(fitted.save(adapter))
