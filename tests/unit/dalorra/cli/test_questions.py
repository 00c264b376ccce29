"""`dalorra questions`."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dalorra.adapter.directory import read_adapter
from dalorra.cli import app
from tests.tiny import save_tiny_adapter, tiny_base


@pytest.fixture
def run() -> Any:
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, ["questions", *map(str, arguments)])


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    save_tiny_adapter(tmp_path, tiny_base())
    return tmp_path


def test_questions_are_added_listed_and_removed(run: Any, adapter: Path):
    labels = tuple(read_adapter(adapter).manifest.labelled.labels)
    text = f"Is it {labels[0]}?"
    added = run("add", adapter, text)
    assert added.exit_code == 0, added.stderr
    assert text in added.stdout
    assert f"choice of {', '.join(labels)}" in added.stdout
    assert run("add", adapter, "Which is it?").exit_code == 0
    assert run("add", adapter, " WHICH is it? ").exit_code == 0  # the same one again
    assert [one.instructions for one in read_adapter(adapter).registered] == [text, "WHICH is it?"]
    assert len(run("list", adapter).stdout.splitlines()) == 2
    assert run("remove", adapter, "which is it?").exit_code == 0
    assert [one.instructions for one in read_adapter(adapter).registered] == [text]


def test_what_is_wrong_is_a_sentence(run: Any, adapter: Path, tmp_path: Path):
    for arguments, says in (
        (("add", adapter, "Is it good?", "--yes", "good"), "no label is called 'good'"),
        (("remove", adapter, "Is it?"), "none is registered"),
        (("list", tmp_path / "nowhere"), "is no adapter"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert says in result.stderr


def test_a_bundled_adapter_has_a_name(run: Any):
    listed = run("list", "sentiment")
    assert listed.stdout.startswith("Is this review positive?  (noul, yes is positive; ")
