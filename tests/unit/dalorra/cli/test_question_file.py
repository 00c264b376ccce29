"""A question that is written wrongly says where, in the words of its file."""

from pathlib import Path

import pytest

from dalorra.cli.question_file import read_question
from dalorra.errors import ConfigError


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("type: noul\ninstruction: Urgent?", r": instruction: there is no such field"),
        ("type: noul\ninstructions: Urgent?\nlevels: [a]", r": levels: there is no such field"),
        ("type: choice\ninstructions: Which?\ncriteria: {a: null}", "at least 2"),
        ("type: maybe\ninstructions: Which?", "'maybe'"),
        ("instructions: Which?", "write it as a question of /v1/systemone"),
        ("- a list", "question"),
        ("type: [", "question"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, written: str, says: str):
    path = tmp_path / "q.yaml"
    path.write_text(written)
    with pytest.raises(ConfigError, match=says) as caught:
        read_question(path)
    assert str(path) in str(caught.value)
    assert "pydantic" not in str(caught.value)
    assert "Extra inputs" not in str(caught.value)
