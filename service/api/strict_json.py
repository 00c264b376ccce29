"""A body as JSON, of which nothing is passed over in silence.

The web framework's own reader keeps the last of two members with one name, and takes `NaN`; a
question that stands twice would be answered once.
"""

from __future__ import annotations

import json
import math
from importlib import import_module
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from service.errors import (
    LONGEST_ECHO,
    BodyTooLargeError,
    Fault,
    InvalidBodyError,
    MalformedBodyError,
)

B = TypeVar("B", bound=BaseModel)

_MOST_LEVELS = 64
"""Of objects and arrays inside each other."""


async def read_body(request: Request, kind: type[B], max_bytes: int) -> B:
    """The body of a request.

    Args:
        request: whose body was not read before.
        kind: what it must be.
        max_bytes: longest body once it is unpacked.

    Raises:
        MalformedBodyError: it is not JSON in UTF-8.
        InvalidBodyError: it is something else, or has a name twice in one object.
        BodyTooLargeError: it is longer once it is unpacked.
    """
    if "json" not in request.headers.get("content-type", ""):
        _refuse("send a JSON object with the header Content-Type: application/json", "json_type")
    encoding = request.headers.get("content-encoding", "identity")
    content = _unpacked(await request.body(), encoding, max_bytes)
    return checked(parse(content), kind)


def checked(value: Any, kind: type[B]) -> B:
    """A value as a `kind`.

    Raises:
        InvalidBodyError: it is none.
    """
    if not isinstance(value, dict):
        _refuse("the body must be a JSON object", "dict_type")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        raise InvalidBodyError(
            *(
                Fault(_short(one["loc"]), one["msg"].removeprefix("Value error, "), one["type"])
                for one in faults
            )
        ) from None


def parse(content: bytes) -> Any:
    """What a text in JSON says.

    Raises:
        MalformedBodyError, InvalidBodyError: see `read_body`.
    """
    try:
        value = json.loads(
            content.decode(),
            object_pairs_hook=_once,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except UnicodeDecodeError:
        raise MalformedBodyError("the body is not valid JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        raise MalformedBodyError(f"the body is not valid JSON: {error.msg}") from None
    except (RecursionError, ValueError):  # a number may have too many digits
        raise MalformedBodyError("the body is not valid JSON: it goes too far") from None
    if _deeper(value, _MOST_LEVELS):
        _refuse(f"objects and arrays lie more than {_MOST_LEVELS} deep in each other", "too_deep")
    if b"\\u" in content:  # an escape can be half of a surrogate pair
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            _refuse("the body is not Unicode: it holds half of a surrogate pair", "string_unicode")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            _refuse(f"{_echo(name)} stands twice in one object: name it once", "duplicate_name")
        members[name] = value
    return members


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _refuse(f"{text[:LONGEST_ECHO]} is no finite number", "finite_number")
    return number


def _deeper(value: Any, levels: int) -> bool:
    """Whether containers lie in each other in more than so many levels."""
    if not isinstance(value, dict | list):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(one, levels - 1) for one in inside)


def _unpacked(content: bytes, encoding: str, max_bytes: int) -> bytes:
    if encoding == "identity":
        return content
    zstd = _zstd() if encoding == "zstd" else None
    if zstd is None:
        _refuse(f"the body is packed by {_echo(encoding)}: send it as it is", "content_encoding")
    try:
        unpacked: bytes = zstd.ZstdDecompressor().decompress(content, max_length=max_bytes + 1)
    except zstd.ZstdError:
        raise MalformedBodyError("the body is not valid zstd") from None
    if len(unpacked) > max_bytes:
        raise BodyTooLargeError(f"the body is longer than {max_bytes} bytes once it is unpacked")
    return unpacked


def _zstd() -> Any:
    """Python's own module from 3.14, or its backport; None where there is neither."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


def _refuse(message: str, kind: str) -> NoReturn:
    raise InvalidBodyError(Fault((), message, kind))


def _short(path: tuple[int | str, ...]) -> tuple[int | str, ...]:
    return tuple(part if isinstance(part, int) else part[:LONGEST_ECHO] for part in path)


def _echo(text: str) -> str:
    return repr(text[:LONGEST_ECHO])
