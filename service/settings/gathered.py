"""Where settings come from: flags over environment (`DALORRA_…`) over a file over the defaults.

Whatever is not known is fatal, in each of the three places: a misspelt limit that is silently
ignored is found in production.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dalorra.errors import ConfigError
from service.settings.known import ENV_PREFIX, Settings

_NOT_SETTINGS = {"DALORRA_CACHE", "DALORRA_CONFIG"}


def load_settings(config: Path | None = None, **overrides: Any) -> Settings:
    """Gathers the settings.

    Args:
        config: TOML or YAML file; `DALORRA_CONFIG` names it if unset.
        overrides: settings by name, which win; those that are None count as not given.

    Raises:
        ConfigError: a setting is unknown or has a value that it cannot have; the file cannot be
            read.
    """
    if config is None and os.environ.get("DALORRA_CONFIG"):
        config = Path(os.environ["DALORRA_CONFIG"])
    from_file = _read_file(config) if config else {}
    in_environment = _check_environment(os.environ)
    given = {name: value for name, value in overrides.items() if value is not None}
    for name in given:
        _check_known(name, "the setting")
    # pydantic lets arguments win over the environment: what it overrides of the file is left out.
    outranked = {name: value for name, value in from_file.items() if name not in in_environment}
    origin = {
        **dict.fromkeys(from_file, f"in {config}"),
        **{name: f"from {ENV_PREFIX}{name.upper()}" for name in in_environment},
        **dict.fromkeys(given, "given"),
    }
    try:
        return Settings(**{**outranked, **given})
    except ValidationError as error:
        raise ConfigError(_sentence(error, origin)) from None  # its text may hold a key


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
        values = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"the configuration file cannot be read: {error}") from error
    except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        # The parsers quote the line they stumble over, which may hold a key.
        raise ConfigError(f"{path} is not valid {path.suffix.lstrip('.') or 'YAML'}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold settings by name, such as 'port: 8000'")
    for name in values:
        _check_known(str(name), f"{path}: the setting")
    return values


def _check_environment(environ: Mapping[str, str]) -> Set[str]:
    """Names of the settings that the environment gives; a foreign `DALORRA_…` is refused."""
    names = set()
    for variable, value in environ.items():
        if not variable.upper().startswith(ENV_PREFIX) or variable.upper() in _NOT_SETTINGS:
            continue
        _refuse_service_link(variable, value)
        name = variable[len(ENV_PREFIX) :].lower()
        _check_known(name, f"the environment variable {variable}: the setting")
        names.add(name)
    return names


def _refuse_service_link(variable: str, value: str) -> None:
    if value.startswith("tcp://") or variable.startswith(
        ("DALORRA_PORT_", "DALORRA_SERVICE_HOST", "DALORRA_SERVICE_PORT")
    ):
        raise ConfigError(
            f"the environment variable {variable} comes from a Kubernetes Service named dalorra, "
            "not from you: set enableServiceLinks: false in the pod"
        )


def _check_known(name: str, what: str) -> None:
    if name in Settings.model_fields:
        return
    close = difflib.get_close_matches(name, Settings.model_fields, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(Settings.model_fields)}"
    raise ConfigError(f"{what} {name!r} is unknown: {hint}")


def _sentence(error: ValidationError, origin: Mapping[str, str]) -> str:
    parts = []
    for problem in error.errors(include_input=False, include_url=False, include_context=False):
        message = problem["msg"].removeprefix("Value error, ")
        name = str(problem["loc"][0]) if problem["loc"] else ""
        where = f" ({origin[name]})" if name in origin else ""
        parts.append(f"{name}{where}: {message}" if name else message)
    return "; ".join(parts)
