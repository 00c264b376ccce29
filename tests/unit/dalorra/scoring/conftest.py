"""Small windows, a predictor without weights, and jobs on records."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from dalorra.scoring.job import Job
from dalorra.scoring.outputs import output_for
from dalorra.scoring.questions import Columns
from tests.fakes import FakePredictor
from tests.tiny import FORMAT

LABELS = ("negative", "positive")


@pytest.fixture
def predictor() -> FakePredictor:
    return FakePredictor()


@pytest.fixture
def job(tmp_path) -> Callable[..., Job]:
    """A job on records or on a file's content: `job(records, "out.parquet", on_error="record")`."""

    def make(
        content: list[Any] | str | bytes, out: str = "out.jsonl", name: str = "in.jsonl", **options
    ) -> Job:
        source, target = tmp_path / name, tmp_path / out
        if isinstance(content, list):
            content = "".join(json.dumps(record) + "\n" for record in content)
        source.write_bytes(content if isinstance(content, bytes) else content.encode())
        names = options.pop("names", {})
        own = options.pop("keep_columns", True)
        output = output_for(target, LABELS, source if own else None)
        options.setdefault("batch_rows", 64)  # two records in a window
        return Job(source, target, output, Columns(FORMAT, names), **options)

    return make
