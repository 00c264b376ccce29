"""What tests of scored files share."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from dalorra.scoring.job import Job
from dalorra.scoring.run import locally, score_file
from tests.fakes import FakePredictor

TEXTS = ["fine", "a much longer sentence, in two parts", "no", "good fun all the way", "x" * 60]


def records_of(texts: Iterable[str], **more: object) -> list[dict[str, object]]:
    return [{"sentence": text, **more} for text in texts]


def run(job: Job, predictor: FakePredictor, *, resume: bool = False) -> list[dict[str, Any]]:
    score_file(job, locally(lambda: predictor), resume=resume)
    return read(job.out)


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        lines: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        return lines
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return [line | {"row": int(line["row"])} for line in csv.DictReader(file)]
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def left_over(job: Job) -> set[str]:
    return {path.name for path in job.out.parent.iterdir()} - {job.source.name}


def never_loaded() -> FakePredictor:
    pytest.fail("the model was loaded")
