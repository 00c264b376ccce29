"""What adapters may be called, and how several are written as one setting."""

import re
from collections.abc import Mapping
from typing import Any

ADAPTER_NAME = "[A-Za-z0-9][A-Za-z0-9_-]{0,38}"
"""Fit for a path, a metric's label and a tool's name."""


def named_adapters(value: object) -> object:
    """`name=directory,name=directory` as a mapping; anything else as it is.

    Raises:
        ValueError: the text is not of that form, or a name is not allowed.
    """
    named: Mapping[Any, Any] = value if isinstance(value, Mapping) else {}
    if isinstance(value, str):
        pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
        if not all(name.strip() and path.strip() for name, _, path in pairs):
            raise ValueError("write name=directory,name=directory")
        named = value = {name.strip(): path.strip() for name, _, path in pairs}
    for name in named:
        if not re.fullmatch(ADAPTER_NAME, str(name)):
            raise ValueError(
                f"{name!r} is no name for an adapter: use up to 39 letters, digits, - and _"
            )
    return value
