"""What has been answered so far, on disk: an interrupted run goes on from there.

The journal of `scored.jsonl` is `scored.jsonl.partial`. Its first line says what the run is about,
and each one after it holds the answer to one record of the input, in order. Lines are appended a
window at a time; of a window that was cut short the whole lines count.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Self

from dalorra.errors import ConfigError
from dalorra.scoring.answers import Line

Identity = Mapping[str, object]


class Journal:
    """A journal that is open for appending.

    Attributes:
        path: of the file.
        lines: answers that it holds.
    """

    def __init__(self, path: Path, file: BinaryIO, lines: int) -> None:
        self.path = path
        self.lines = lines
        self._file = file

    @classmethod
    def open(cls, path: Path, identity: Identity, *, resume: bool) -> Self:
        """Starts a journal, or goes on with the one of an interrupted run.

        Args:
            path: of the file.
            identity: what the answers depend on, by the words for it.
            resume: whether to go on where there is one.

        Raises:
            ConfigError: there is one and `resume` is not set, it belongs to another run, it is
                damaged, or it cannot be written.
        """
        try:
            if path.exists():
                return cls(path, *_reopen(path, identity, resume))
            return cls(path, _create(path, identity), 0)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error

    def append(self, lines: Sequence[Line]) -> None:
        """Writes the answers of one window; once this returns they outlive a crash."""
        self._file.write(b"".join(_json_bytes(line) for line in lines))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.lines += len(lines)

    def __iter__(self) -> Iterator[Line]:
        """The answers, in order."""
        with self.path.open("rb") as file:
            next(file)
            yield from map(json.loads, file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _create(path: Path, identity: Identity) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("xb")
    file.write(_json_bytes(dict(identity)))
    file.flush()
    return file


def _reopen(path: Path, identity: Identity, resume: bool) -> tuple[BinaryIO, int]:
    if not resume:
        raise ConfigError(
            f"{path} holds an unfinished run: go on with --resume, or delete it to start again"
        )
    with path.open("rb") as file:
        _check(path, file.readline(), identity)
        end, lines = file.tell(), 0
        for line in file:
            if not line.endswith(b"\n"):  # cut short by the interruption
                break
            end, lines = end + len(line), lines + 1
    os.truncate(path, end)
    return path.open("ab"), lines


def _check(path: Path, first_line: bytes, identity: Identity) -> None:
    try:
        begun = json.loads(first_line)
    except ValueError:
        begun = None
    if not isinstance(begun, dict) or not first_line.endswith(b"\n"):
        raise ConfigError(f"{path} is no journal of an unfinished run: delete it to start again")
    for name, value in identity.items():
        if begun.get(name) != value:
            raise ConfigError(
                f"{path} was begun with another {name}: resume with that one, or delete the file "
                "to start again"
            )


def _json_bytes(line: Line) -> bytes:
    return json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"
