"""Answers without a server: to one input, or to every row of a file."""

import os
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dalorra.cli.console import EXIT_INTERRUPTED, note, print_json, refuse
from dalorra.cli.options import (
    AdapterDir,
    BaseModelOption,
    Device,
    Dtype,
    HandMadePolicies,
    Quantize,
    assignments,
    named,
)
from dalorra.errors import ConfigError

if TYPE_CHECKING:
    from dalorra.predictor import Predictor
    from dalorra.prompts import InputFields
    from dalorra.scoring.job import Job
    from dalorra.scoring.run import AnswerWindows


class OnError(StrEnum):
    """What `dalorra predict` does about a record that does not fit."""

    STOP = "stop"
    RECORD = "record"


def predict(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[TEXT|FILE]", help="The input, for one-field templates; a file with --out."
        ),
    ] = None,
    field: Annotated[
        list[str] | None, typer.Option("--field", "-f", help="name=value, for templates with more.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Score FILE into this file, .jsonl, .csv or .parquet.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="field=column, where their names differ.")
    ] = None,
    columns: Annotated[bool, typer.Option(help="Copy FILE's own columns.")] = True,
    on_error: Annotated[
        OnError, typer.Option(help="A row that does not fit: stop at the start, or record it.")
    ] = OnError.STOP,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a run was interrupted.")
    ] = False,
    batch_rows: Annotated[
        int,
        typer.Option(min=1, help="Packed rows of one forward; a few are answered between saves."),
    ] = 2048,
    ray: Annotated[bool, typer.Option("--ray", help="Score FILE on a Ray cluster.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Copies of the model there.", show_default="one per GPU, or node"),
    ] = None,
    adapter: AdapterDir = None,
    base_model: BaseModelOption = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    hand_made_policies: HandMadePolicies = False,
) -> None:
    """Answer one input and print the prediction as JSON; with --out, answer every row of a file.

    Rows keep their order. The file appears once all of them are answered.
    """
    bits = named(quantize)
    if out is None:
        if column or resume or ray or workers or not columns or on_error is OnError.RECORD:
            raise ConfigError("these options are for a file: say with --out where its answers go")
        value = _one_input(what, field)
        from dalorra.predictor import Predictor

        predictor = Predictor.load(
            adapter,
            base_model,
            device=device,
            dtype=dtype,
            quantize=bits,
            hand_made_policies=hand_made_policies,
        )
        _answer_one(predictor, value)
        return
    if what is None or field:
        raise ConfigError("--out goes with one FILE to score")
    if workers and not ray:
        raise ConfigError("--workers goes with --ray")
    from dalorra.adapter.directory import bundled_adapter, read_adapter
    from dalorra.adapter.hub import located
    from dalorra.predictor import Predictor
    from dalorra.scoring.job import Job

    folder = located(adapter or bundled_adapter()).resolve()
    job = Job.for_adapter(
        read_adapter(folder, hand_made_policies=hand_made_policies),
        Path(what),
        out,
        names=assignments(column or (), "--column"),
        on_error=on_error.value,
        keep_columns=columns,
        batch_rows=batch_rows,
        dtype=dtype,
        quantize=bits,
    )
    if base_model and Path(base_model).exists():  # workers have folders of their own
        base_model = str(Path(base_model).resolve())
    load = partial(
        Predictor.load,
        folder,
        base_model,
        device=device,
        dtype=dtype,
        quantize=bits,
        row_budget=batch_rows,
        hand_made_policies=hand_made_policies,
    )
    _answer_file(job, _answers(load, ray, workers), resume)


def _one_input(text: str | None, field: list[str] | None) -> "InputFields":
    if (text is None) == (not field):
        raise ConfigError("give either one text or --field name=value for each of its fields")
    if text is None:
        return assignments(field or (), "--field")
    from dalorra.tables import SUFFIXES

    # A text may end in a file's name; a name alone, or a file that is there, is no text to judge.
    if text.endswith(SUFFIXES) and (len(text.split()) == 1 or os.path.exists(text)):  # noqa: PTH110 - `Path.exists` raises for a long text
        raise ConfigError(
            f"{text} looks like a file: add --out OUT.jsonl to score its rows, or ask about this "
            "very text with --field name=value"
        )
    return text


def _answer_one(predictor: "Predictor", value: "InputFields") -> None:
    prompt = predictor.encode(value)
    (prediction,) = predictor.predict([prompt])
    verdict = predictor.policy.decide(prediction)
    print_json(
        asdict(prediction)
        | {"decision": verdict.decision, "reason": verdict.reason, "truncated": prompt.truncated}
        | {"model": predictor.card.model, "adapter": predictor.card.adapter}
    )


def _answers(load: "Callable[[], Predictor]", ray: bool, workers: int | None) -> "AnswerWindows":
    if ray:
        from dalorra.scoring.on_ray import on_ray

        return on_ray(load, workers)
    from dalorra.scoring.run import locally

    return locally(load)


def _answer_file(job: "Job", answer_windows: "AnswerWindows", resume: bool) -> None:
    from dalorra.scoring.run import score_file

    try:
        counts = score_file(job, answer_windows, resume=resume)
    except KeyboardInterrupt:
        refuse(f"interrupted; {job.journal} keeps what is answered: go on with --resume")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (OSError, FloatingPointError) as error:  # a full disk, a forward that overflows
        reason = error.strerror if isinstance(error, OSError) else None
        raise ConfigError(
            f"{reason or error}; {job.journal} keeps what is answered: go on with --resume"
        ) from error
    parts = ", ".join(f"{count} {decision}" for decision, count in counts.most_common())
    note(f"{counts.total()} rows: {parts}")
    typer.echo(job.out)
