"""Reading what people write: YAML files."""

import re
from pathlib import Path
from typing import Any

import yaml

from dalorra.errors import ConfigError


class _Words(yaml.SafeLoader):
    """`no`, `yes`, `on`, `off` are words, as YAML 1.2 has it; `true` and `false` are booleans."""


_Words.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Words.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def parse_yaml(text: str) -> Any:
    """The content of YAML.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, Loader=_Words)  # noqa: S506 - a SafeLoader


def read_yaml(path: Path, name: str | None = None) -> Any:
    """The content of a YAML file, which messages call `name`, by default by its path.

    Raises:
        ConfigError: not readable, or not YAML.
    """
    name = name or str(path)
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} is not YAML: {error}") from error
