"""Reading what people write: YAML files."""

from pathlib import Path
from typing import Any

import yaml

from dalorra.errors import ConfigError


def read_yaml(path: Path, name: str | None = None) -> Any:
    """The content of a YAML file, which messages call `name`, by default by its path.

    Raises:
        ConfigError: not readable, or not YAML.
    """
    name = name or str(path)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} is not YAML: {error}") from error
