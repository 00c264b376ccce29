"""Every error that the project raises on purpose, so that callers can catch one class.

Each message is one sentence that names what is wrong and what would be right.
"""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class DalorraError(Exception):
    """Base class of all of them."""


class InputError(DalorraError, ValueError):
    """An input that the adapter's template cannot take: missing field, empty, over-long.

    Attributes:
        place: which of several inputs of one request it is; None where there is only one.
    """

    def __init__(self, message: str, place: int | None = None) -> None:
        super().__init__(message)
        self.place = place


class TooLongError(InputError):
    """A question that takes more tokens than its adapter reads."""


class AdapterError(DalorraError):
    """An adapter directory that is damaged, unknown, or made for another base model."""


class BaseModelError(DalorraError):
    """A base model that cannot be found, fetched, verified or used."""


class ConfigError(DalorraError):
    """A setting or a training configuration that cannot be carried out."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the work where it can go on later; no fault, so no `DalorraError`.

    Attributes:
        signum: SIGINT, which is Ctrl-C, or SIGTERM.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


def first_fault(error: ValidationError, unnamed: Container[int | str] = ()) -> str:
    """Where the content of a file is wrong first, and how: `labels.0: should be …`.

    Args:
        error: of pydantic.
        unnamed: steps of the way that the file has no names for.
    """
    first = error.errors(include_url=False)[0]
    where = ".".join(str(step) for step in first["loc"] if step not in unnamed)
    return f"{where or 'content'}: {fault_in_words(first['type'], first['msg'])}"


def fault_in_words(kind: str, message: str) -> str:
    """What pydantic found, in words for whoever wrote the content."""
    if kind == "extra_forbidden":
        return "there is no such field"
    return message.removeprefix("Value error, ")
