"""Adapters on a stand-in for the hub: pushed, read by reference, copied."""

import json
import socket
from pathlib import Path

import pytest

from dalorra.adapter.directory import read_adapter
from dalorra.adapter.hub import own_folder
from dalorra.adapter.publish import pull, push
from dalorra.errors import AdapterError, ConfigError
from dalorra.hub import HubReference
from dalorra.shared_base import SharedBase
from tests.hub import TOKEN, Hub, running_hub, use
from tests.tiny import predictor_on, save_tiny_adapter, tiny_base

CARD = '---\nbase_model: "tiny-llama"\n---\n\n# tiny\n'


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with running_hub() as running:
        use(running.url, str(tmp_path / "cache"), monkeypatch)
        yield running


@pytest.fixture
def adapter(tmp_path) -> Path:
    path = save_tiny_adapter(tmp_path / "adapter", tiny_base())
    (path / "README.md").write_text(CARD)
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("acme/tickets", ("acme/tickets", None)),
        ("acme/tickets@v1.2", ("acme/tickets", "v1.2")),
        ("acme/tickets@refs/pr/3", ("acme/tickets", "refs/pr/3")),
        ("runs/tickets/adapter", None),
        ("tickets", None),
        ("/runs/tickets", None),
        ("./tickets", None),
        ("../tickets", None),
        ("acme/tickets@", None),
        ("acme/tickets@../v1", None),
    ],
)
def test_what_is_a_reference_to_the_hub(text, found):
    expected = None if found is None else HubReference(*found)
    assert HubReference.of(text) == expected


def test_what_is_pushed_answers_by_its_reference(hub: Hub, adapter):
    reference = push(adapter, "acme/tiny")
    assert reference == f"acme/tiny@{hub.commits['acme/tiny'][-1][0]}"
    for name in (reference, "acme/tiny", Path("acme/tiny")):
        assert read_adapter(name).digest == read_adapter(adapter).digest
    base = tiny_base()
    predictor = SharedBase(base).bind(SharedBase(base).read(reference))
    prompts = [predictor.encode("an odd little film")]
    assert predictor.predict(prompts) == predictor_on(adapter, tiny_base()).predict(prompts)


def test_a_revision_stays_what_it_is(hub: Hub, adapter, tmp_path):
    first = push(adapter, "acme/tiny")
    other = save_tiny_adapter(tmp_path / "other", tiny_base(), seed=7)
    (other / "README.md").write_text(CARD)
    second = push(other, "acme/tiny")
    digests = [read_adapter(path).digest for path in (adapter, other)]
    assert digests[0] != digests[1]
    assert [read_adapter(reference).digest for reference in (first, second)] == digests
    assert read_adapter("acme/tiny").digest == digests[1]


def test_what_is_published_is_the_adapter_and_its_card(hub: Hub, adapter):
    for name in ("looks.json", "notes.txt", "optimizer.pt"):
        (adapter / name).write_text("{}")
    for name in ("questions.json", "question_policies.json"):
        (adapter / name).write_text("[]")
    (adapter / "checkpoint").mkdir()
    (adapter / "checkpoint" / "dalorra.json").write_text("{}")
    push(adapter, "acme/tiny", private=True)
    (_, files) = hub.commits["acme/tiny"][-1]
    expected = {"adapter_config.json", "adapter_model.safetensors", "dalorra.json", "README.md"}
    expected |= {"questions.json", "question_policies.json"}
    assert files == {name: (adapter / name).read_bytes() for name in expected}
    assert hub.private == {"acme/tiny"}


def test_nothing_is_downloaded_that_can_execute(hub: Hub, adapter):
    harmful = {"adapter_model.bin": b"pickle", "modeling.py": b"import os", "x/evil.json": b"{}"}
    hub.commit("acme/tiny", files_of(adapter) | harmful)
    path = read_adapter("acme/tiny").path
    needed = {"adapter_config.json", "adapter_model.safetensors", "dalorra.json"}
    assert hub.downloaded == needed == {file.name for file in path.iterdir()}


def test_what_was_downloaded_needs_no_network(hub: Hub, adapter, monkeypatch):
    reference = push(adapter, "acme/tiny")
    digest = read_adapter(reference).digest
    unreachable(monkeypatch)
    assert read_adapter(reference).digest == digest
    with pytest.raises(AdapterError, match="acme/other is no local folder, and the model hub"):
        read_adapter("acme/other")


def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)


def test_a_folder_of_that_name_comes_first(hub: Hub, adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme").mkdir()
    adapter.rename(tmp_path / "acme" / "tiny")
    assert read_adapter("acme/tiny").path == Path("acme/tiny")
    assert hub.asked == []


def test_says_why_it_cannot_be_had(hub: Hub, adapter, monkeypatch):
    with pytest.raises(AdapterError, match="the hub has no adapter acme/none, or it is private"):
        read_adapter("acme/none")
    push(adapter, "acme/tiny", private=True)
    with pytest.raises(AdapterError, match="acme/tiny has no revision v9"):
        read_adapter("acme/tiny@v9")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(AdapterError, match="or it is private and HF_TOKEN does not open it"):
        read_adapter("acme/tiny")


def test_a_plain_lora_of_the_hub_is_one_to_import(hub: Hub, adapter):
    files = files_of(adapter)
    del files["dalorra.json"]
    hub.commit("acme/plain", files)
    with pytest.raises(AdapterError, match=r"`dalorra import acme/plain OUT --task task\.yaml`"):
        read_adapter("acme/plain")


def test_says_why_it_cannot_be_published(hub: Hub, adapter, monkeypatch):
    with pytest.raises(AdapterError, match="'tiny' is no place on the hub: write owner/name"):
        push(adapter, "tiny")
    with pytest.raises(AdapterError, match="others/tiny cannot be published: this token may not"):
        push(adapter, "others/tiny")
    (adapter / "README.md").write_text("# no metadata\n")
    with pytest.raises(AdapterError, match=r"Invalid metadata in README\.md"):
        push(adapter, "acme/tiny")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(AdapterError, match="this token may not write there"):
        push(adapter, "acme/tiny")
    unreachable(monkeypatch)
    with pytest.raises(AdapterError, match="the hub cannot be reached"):
        push(adapter, "acme/tiny")
    monkeypatch.setattr("dalorra.adapter.publish.get_token", lambda: None)
    with pytest.raises(AdapterError, match="nothing without a token: set HF_TOKEN"):
        push(adapter, "acme/tiny")
    (adapter / "dalorra.json").write_text("{}")
    with pytest.raises(AdapterError, match=r"dalorra\.json is not format version"):
        push(adapter, "acme/tiny")
    assert not hub.commits["acme/tiny"]


def test_a_copy_is_ones_own(hub: Hub, adapter, tmp_path):
    hub.commit("acme/tiny", files_of(adapter) | {"adapter_model.bin": b"pickle"})
    copy = pull("acme/tiny", tmp_path / "mine" / "copy")
    assert own_folder(copy) == copy
    assert not any(file.is_symlink() for file in copy.iterdir())
    digest = read_adapter(copy).digest
    assert digest == read_adapter(adapter).digest
    manifest = json.loads((copy / "dalorra.json").read_text())
    (copy / "dalorra.json").write_text(json.dumps(manifest | {"name": "mine"}))
    assert read_adapter(copy).digest != digest
    assert read_adapter("acme/tiny").digest == digest
    with pytest.raises(AdapterError, match="copy exists: name a folder that does not"):
        pull("acme/tiny", copy)


def test_what_writes_does_not_write_into_the_cache():
    with pytest.raises(ConfigError, match="copy it with `dalorra pull acme/tiny@v1 DIR`"):
        own_folder(Path("acme/tiny@v1"))
    assert own_folder(Path("/no/such/adapter")) == Path("/no/such/adapter")


def test_the_token_goes_nowhere_but_to_the_hub(hub: Hub, adapter):
    push(adapter, "acme/tiny")
    (_, files) = hub.commits["acme/tiny"][-1]
    assert not any(TOKEN.encode() in data for data in files.values())
