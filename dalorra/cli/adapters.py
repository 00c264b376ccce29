"""What an adapter is and what else it can become, and the base model it stands on."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dalorra.cli.console import print_json


class ExportForm(StrEnum):
    """What `dalorra export` writes."""

    MEAN = "mean"
    BANK = "bank"


def fetch(
    name: Annotated[
        str | None,
        typer.Argument(help="smollm2-135m-instruct or all-minilm-l6-v2.", show_default="the first"),
    ] = None,
) -> None:
    """Download and unpack a base model, once; print its folder."""
    from dalorra.base.fetch import fetch as fetch_pinned

    typer.echo(fetch_pinned(name=name) if name else fetch_pinned())


def info(adapter: Annotated[Path, typer.Argument(help="Adapter folder.")]) -> None:
    """Verify an adapter folder and print what it says about itself as JSON."""
    from dalorra.adapter.directory import read_adapter

    read = read_adapter(adapter)
    policy = read.policy.model_dump(mode="json") if read.policy else None
    print_json(read.manifest.model_dump(mode="json") | {"digest": read.digest, "policy": policy})


def export(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    form: Annotated[
        ExportForm, typer.Option(help="mean: one LoRA; bank: one LoRA for each sample.")
    ] = ExportForm.MEAN,
) -> None:
    """Write an adapter as plain LoRA, which PEFT, vLLM and TGI run."""
    from dalorra.adapter.export import export_bank, export_mean

    typer.echo((export_mean if form is ExportForm.MEAN else export_bank)(adapter, out))
