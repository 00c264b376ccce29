"""Starting the server, and the keys it knows."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dalorra.cli.options import AdapterDir, BaseModelOption, Quantize, assignments
from dalorra.errors import ConfigError


def serve(
    config: Annotated[Path | None, typer.Option(help="TOML or YAML file of settings.")] = None,
    host: Annotated[str | None, typer.Option(help="Address; 0.0.0.0 for all.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 picks a free one.")] = None,
    adapter: AdapterDir = None,
    base_model: BaseModelOption = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.")] = None,
    quantize: Quantize = None,
    log_format: Annotated[str | None, typer.Option(help="json or console.")] = None,
    others: Annotated[
        list[str] | None, typer.Option("--set", help="name=value, any other setting.")
    ] = None,
) -> None:
    """Start the server. Flags win over DALORRA_... variables, those over the file.

    Where none of them names an adapter, the bundled ones are served.
    """
    overrides: dict[str, Any] = dict(assignments(others or (), "--set"))
    flags = {
        "host": host,
        "port": port,
        "adapter": adapter,
        "base_model": base_model,
        "device": device,
        "dtype": dtype,
        "quantize": quantize.value if quantize else None,
        "log_format": log_format,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    if twice := sorted(given.keys() & overrides.keys()):
        raise ConfigError(f"{twice[0]} is given twice, by its own flag and by --set")
    from service.run import serve as run_server

    run_server(config=config, **given, **overrides)


def hash_key(
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Hash the key on standard input; else make one.")
    ] = False,
) -> None:
    """Print the hash of a bearer key, for api_keys or a line of api_keys_file.

    Makes the key unless --stdin brings it, and shows it on standard error, this once.
    """
    from service.keys import hash_key as hashed
    from service.keys import new_key

    key = sys.stdin.readline().strip() if stdin else new_key()
    typer.echo(hashed(key))
    if not stdin:
        typer.echo(f"key, shown this once: {key}", err=True)
