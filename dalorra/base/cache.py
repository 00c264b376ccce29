"""Folders of converted base models: made once, whole or not at all, and recognised when damaged.

Nothing here imports torch, so that `dalorra fetch` answers at once when there is nothing to do.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dalorra.errors import BaseModelError

MANIFEST = "dalorra-manifest.json"


def cache_root(cache_dir: Path | None = None) -> Path:
    """Where base models are kept: `cache_dir`, `$DALORRA_CACHE`, or the user's cache folder."""
    if cache_dir is not None:
        return cache_dir
    if configured := os.environ.get("DALORRA_CACHE"):
        return Path(configured).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "dalorra"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "dalorra"
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "dalorra"


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_complete(folder: Path, *, hashes: bool = False) -> bool:
    """Whether `folder` holds every file that its manifest names, with the sizes recorded there.

    With `hashes` the sha256 of each file is compared too (a fifth of a second for 270 MB).
    """
    try:
        files: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text())["files"]
        for name, recorded in files.items():
            if (folder / name).stat().st_size != recorded["bytes"]:
                return False
            if hashes and sha256_of(folder / name) != recorded["sha256"]:
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return bool(files)


def build_once(
    folder: Path,
    build: Callable[[Path, Path], None],
    *,
    source: dict[str, str],
    waiting: Callable[[], None] = lambda: None,
) -> Path:
    """Make `folder` with `build`, unless it is already there and whole.

    The work is done in a hidden folder beside it that is renamed at the end, under a lock: whoever
    comes second waits and finds the first one's work, and an interruption leaves at most a hidden
    folder, which the next call removes.

    Args:
        folder: the folder to make.
        build: called with an empty scratch folder and with the folder to fill.
        source: what the folder was made from, kept in its manifest.
        waiting: called once when another process holds the lock.

    Returns:
        `folder`.

    Raises:
        BaseModelError: the cache cannot be written to.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{folder.name}.lock"), waiting):
            if not is_complete(folder, hashes=True):
                _build(folder, build, source)
    except OSError as error:
        raise BaseModelError(
            f"the base model cannot be kept in {folder.parent}: {error.strerror or error}; "
            "name a folder with space that can be written to with DALORRA_CACHE"
        ) from error
    return folder


@contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(folder: Path, build: Callable[[Path, Path], None], source: dict[str, str]) -> None:
    prefix = f".{folder.name}-"
    for abandoned in folder.parent.glob(f"{prefix}*"):  # ours alone: the lock is held
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as staging:
        scratch, filled = Path(staging, "scratch"), Path(staging, "filled")
        scratch.mkdir()
        filled.mkdir()
        build(scratch, filled)
        for path in filled.iterdir():  # a cache may be shared; safetensors writes 0600
            path.chmod(0o644)
        _write_manifest(filled, source)
        if folder.exists():  # damaged, or it would not be built again
            folder.rename(Path(staging, "damaged"))
        filled.rename(folder)


def _write_manifest(folder: Path, source: dict[str, str]) -> None:
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
    }
    manifest = {"format": 1, "source": source, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
