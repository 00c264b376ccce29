"""What an adapter is and what else it can become, and the base model it stands on."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dalorra.cli.console import note, print_json
from dalorra.cli.options import AnyAdapter, HandMadePolicies


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


def info(adapter: AnyAdapter, hand_made_policies: HandMadePolicies = False) -> None:
    """Verify an adapter and print what it says about itself as JSON."""
    from dalorra.adapter.directory import read_adapter

    read = read_adapter(adapter, hand_made_policies=hand_made_policies)
    policy = read.policy.model_dump(mode="json") if read.policy else None
    print_json(read.manifest.model_dump(mode="json") | {"digest": read.digest, "policy": policy})


def export(
    adapter: AnyAdapter,
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    form: Annotated[
        ExportForm, typer.Option(help="mean: one LoRA; bank: one LoRA for each sample.")
    ] = ExportForm.MEAN,
) -> None:
    """Write an adapter as plain LoRA for other programs, and say which of them it is for.

    An all_tokens adapter runs wherever a PEFT LoRA does. An answer_tokens adapter acts on the
    answer cue alone, so its export is an activated LoRA: PEFT runs it, and a server that supports
    them (alora_invocation_tokens). Whoever applies it to every token, or merges it, has another
    model.
    """
    from dalorra.adapter.export import export_bank, export_mean, where_it_runs

    typer.echo((export_mean if form is ExportForm.MEAN else export_bank)(adapter, out))
    note(where_it_runs(adapter))


def push(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder.")],
    hub_id: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Where on the hub.")],
    private: Annotated[
        bool, typer.Option("--private", help="Only for its owner, where it is made now.")
    ] = False,
) -> None:
    """Publish an adapter with its model card on the hub; print the reference that stays it."""
    from dalorra.adapter.publish import push as publish

    typer.echo(publish(adapter, hub_id, private=private))


def pull(
    adapter: Annotated[
        str, typer.Argument(metavar="OWNER/NAME@REVISION", help="Adapter on the hub.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
) -> None:
    """Copy an adapter of the hub into a folder, to calibrate it there; print the folder."""
    from dalorra.adapter.publish import pull as copy

    typer.echo(copy(adapter, out))
