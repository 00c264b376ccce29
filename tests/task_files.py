"""A user's task and its data, in every kind of file that can be read."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from training.tasks import Example

TICKETS: dict[str, Any] = {
    "name": "tickets",
    "template": "Ticket: {subject} / {body}",
    "answer_cue": "\nQueue:",
    "labels": {"billing": " billing", "support": " support"},
    "columns": {"body": "text"},
    "label_column": "queue",
    "label_values": {0: "billing", 1: "support"},
}
RECORDS = [
    {"subject": "Invoice", "text": "Twice, on one day", "queue": 0},
    {"subject": "", "text": 'It says "crash"', "queue": 1},
]
EXPECTED = [
    Example({"subject": "Invoice", "body": "Twice, on one day"}, "billing"),
    Example({"subject": "", "body": 'It says "crash"'}, "support"),
]


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    """Writes a file of the kind that its suffix names, and returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        parquet.write_table(pa.Table.from_pylist(list(records)), path)
    return path


def choice(
    question: str, texts: Sequence[str], keys: Sequence[Any], answer: Any, column: str = "question"
) -> dict[str, Any]:
    """A record of a multiple-choice task, as ARC's."""
    return {column: question, "choices": {"text": texts, "label": keys}, "answerKey": answer}
