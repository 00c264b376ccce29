"""Making a complete adapter of a LoRA that was trained elsewhere."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dalorra.cli.console import note
from dalorra.cli.options import Bits, DataSource, Device, Dtype
from dalorra.errors import ConfigError


class ImportMethod(StrEnum):
    """What `dalorra import` makes of a LoRA."""

    MLE = "mle"
    TFB = "tfb"


def import_lora(
    lora: Annotated[
        str, typer.Argument(help="Folder of a PEFT LoRA, or owner/name@revision on the hub.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    task: Annotated[str, typer.Option(help="What it is asked: a YAML file, or a built-in task.")],
    method: Annotated[
        ImportMethod,
        typer.Option(help="mle: as it is; tfb: with as much noise as the data bear."),
    ] = ImportMethod.MLE,
    data: DataSource = None,
    split: Annotated[str, typer.Option(help="Split of the data.")] = "train",
    name: Annotated[
        str | None, typer.Option(help="What answers call it.", show_default="that of the folder")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=8, help="Longest input, template and cue included.")
    ] = 300,
    base_model: Annotated[
        str | None,
        typer.Option(help="A folder, a .gguf file, or a hub id.", show_default="the LoRA's own"),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Annotated[
        Bits, typer.Option(help="Base model in none, 8bit or 4bit (bitsandbytes).")
    ] = Bits.NONE,
) -> None:
    """Make a complete adapter of a plain PEFT LoRA (causal language model); print its folder.

    It answers as the LoRA does, and accepts nothing until it is calibrated. A folder of several
    LoRAs becomes an ensemble. With tfb, examples of the task (--data, or the hub) say how much
    noise is added; calibrate on others.
    """
    from training.importing import Wanted, import_loras
    from training.methods.mle import Mle
    from training.methods.tfb import Tfb
    from training.tasks import load_examples, load_labelled_task

    described, bayesian = load_labelled_task(task), method is ImportMethod.TFB
    if data is not None and not bayesian:
        raise ConfigError("--data are examples that set the noise of --method tfb: mle needs none")
    wanted = Wanted(
        name=name or out.resolve().name,
        task=described,
        method=Tfb() if bayesian else Mle(),
        anchors=load_examples(described, split, data) if bayesian else (),
        max_tokens=max_tokens,
    )
    folder = import_loras(
        lora,
        out,
        wanted,
        base_model=base_model,
        device=device,
        dtype=dtype,
        quantize=quantize.value,
    )
    note(f"it accepts nothing yet: dalorra calibrate {folder} --data FILE --target-error 0.05")
    typer.echo(folder)
