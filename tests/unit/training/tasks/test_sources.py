"""Records of a task: which are refused and how that is said, and those of the hub."""

import json
import subprocess
import sys

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from pyarrow import parquet

from dalorra.errors import ConfigError
from tests.task_files import EXPECTED, RECORDS, TICKETS, choice, write_records
from training.tasks import Task, load_examples

# ---------------------------------------------------------------------- messages about data


def jsonl(*records):
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    return "".join(line + "\n" for line in lines)


RECORD = RECORDS[0]
ARC = choice("Hot?", ["ice", "sun", "fog", "sea"], ["A", "B", "C", "D"], "B")
REVIEW = {"idx": 7, "sentence": "a joy", "label": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.jsonl",
            jsonl(RECORD, {**RECORD, "queue": 7}),
            "row 2: column 'queue' holds '7', expected one of '0', '1'",
        ),
        (
            "x.jsonl",
            jsonl(RECORD, "", {"subject": "s", "queue": 0}),
            "row 3: no column 'text'; it has 'subject', 'queue'",
        ),
        (
            "x.jsonl",
            jsonl({**RECORD, "text": 3}),
            "row 1: column 'text' holds 3 (int), expected text",
        ),
        ("x.jsonl", jsonl({**RECORD, "text": None}), "row 1: column 'text' is empty"),
        ("x.jsonl", jsonl({**RECORD, "queue": None}), "row 1: column 'queue' is empty"),
        ("x.jsonl", jsonl({**RECORD, "text": " ", "subject": ""}), "row 1: no text in column"),
        ("x.jsonl", jsonl(RECORD, "{"), "row 2: not JSON"),
        ("x.jsonl", jsonl("[1]"), "row 1: a list, expected an object"),
        ("x.jsonl", "\n", "holds no rows"),
        ("x.json", '{"data": []}', "expected a list of objects"),
        ("x.json", "[", "not JSON"),
        ("x.json", json.dumps([RECORD, 1]), "row 2: a int, expected an object"),
        ("x.csv", "subject,text,queue\na,b,0\na,b,c,0\n", "row 2: 4 cells, expected 3"),
        ("x.csv", "subject,text,queue\na,b\n", "row 1: 2 cells, expected 3"),
        ("x.csv", "subject,text,text\na,b,c\n", "occurs twice"),
        ("x.csv", 'subject,text,queue\na,"b"c,0\n', "not CSV"),
        ("x.csv", "subject,text,queue\n", "holds no rows"),
        ("x.csv", "", "holds no rows"),
        ("x.jsonl", b'{"subject": "\xff"}', "not UTF-8 text"),
        ("x.jsonl", '{"subject": "a", "text": "b", "queue": 0, "queue": 1}', "key 'queue' twice"),
        (
            "x.jsonl",
            '{"subject": {"a": 1, "a": 2}, "text": "b", "queue": 0}',
            "column 'subject' has the key 'a' twice",
        ),
        ("x.parquet", "no", "not a parquet file"),
        ("x.txt", "no", "must end in one of .jsonl, .json, .csv, .parquet"),
    ],
)
def test_a_wrong_record_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as refusal:
        load_examples(Task.model_validate(TICKETS), "train", path)
    assert message in str(refusal.value)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (choice("q", ["a", "b"], ["A"], "A"), "equally long lists"),
        ({"question": "q", "choices": "a b", "answerKey": "A"}, "must be a list of texts"),
        ({"question": "q", "choices": [1, 2], "answerKey": 0}, "must be a list of texts"),
        (choice("q", list("abcdef"), list("ABCDEF"), "A"), "has 6 choices, expected between 2"),
        (choice("q", ["a", "b"], ["A", "B"], "C"), "holds 'C', expected one of 'A', 'B'"),
        ({"question": "q", "choices": ["a", "b"], "answerKey": 2}, "expected one of '0', '1', 'A'"),
        ({"question": "q", "answerKey": "A"}, "no column 'choices'"),
    ],
)
def test_a_wrong_choice_is_named(tmp_path, record, message):
    path = write_records(tmp_path / "x.jsonl", [ARC, record])
    with pytest.raises(ConfigError) as refusal:
        load_examples("arc_easy", "test", path)
    assert message in str(refusal.value)
    assert "row 2" in str(refusal.value)


def test_a_column_that_the_task_does_not_ask_for_stops_nothing(tmp_path):
    far = pa.array([1, 2**62], pa.timestamp("us"))
    table = pa.Table.from_pylist(RECORDS).append_column("far", far)
    parquet.write_table(table, tmp_path / "x.parquet")
    task = Task.model_validate(TICKETS)
    assert load_examples(task, "train", tmp_path / "x.parquet") == EXPECTED
    asks = Task.model_validate({**TICKETS, "columns": {"body": "far"}})
    parquet.write_table(table.slice(1), tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match=r"row 1: column 'far' holds what Python has no value"):
        load_examples(asks, "train", tmp_path / "x.parquet")


def test_unlabelled_hub_splits_are_refused(tmp_path):
    path = write_records(tmp_path / "x.jsonl", [{"idx": 0, "sentence": "s", "label": -1}])
    with pytest.raises(ConfigError, match="holds '-1', expected one of '0', '1'"):
        load_examples("sst2", "test", path)


def test_missing_files_say_what_is_there(tmp_path):
    write_records(tmp_path / "sst2" / "train.jsonl", [REVIEW])
    with pytest.raises(ConfigError, match=r"no sst2/test\.jsonl.*sst2 holds train\.jsonl"):
        load_examples("sst2", "test", tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        load_examples("sst2", "test", tmp_path / "none.jsonl")
    write_records(tmp_path / "sst2" / "train.csv", [REVIEW])
    with pytest.raises(ConfigError, match="keep one of them"):
        load_examples("sst2", "train", tmp_path)


# ------------------------------------------------------------------------------------- hub


def test_hub_data_come_through_the_datasets_library(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_records(tmp_path / "repository" / "train.jsonl", RECORDS)
    write_records(tmp_path / "repository" / "test.jsonl", RECORDS[1:])
    # `datasets` reads a local folder by the same call as a repository on the hub.
    hub = {"id": str(tmp_path / "repository"), "splits": {"validation": "test"}}
    task = Task.model_validate({**TICKETS, "hub": hub})
    assert load_examples(task, "train") == EXPECTED
    assert load_examples(task, "validation") == EXPECTED[1:]
    with pytest.raises(ConfigError, match=r"split 'dev' of .* cannot be had"):
        load_examples(task, "dev")


def test_numbers_that_the_hub_has_names_for_are_read_as_these(tmp_path, monkeypatch):
    features = Features(
        {"text": Value("string"), "queue": ClassLabel(names=["support", "billing"])}
    )
    data = Dataset.from_dict({"text": ["a", "b"], "queue": [1, 0]}, features)
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: data)
    content = {"columns": {"body": "text", "subject": "text"}, "hub": {"id": "x"}}
    named = Task.model_validate(TICKETS | content | {"label_values": {}})
    assert [e.label for e in load_examples(named, "train")] == ["billing", "support"]
    numbered = Task.model_validate(TICKETS | content)  # 0 is billing here
    assert [e.label for e in load_examples(numbered, "train")] == ["support", "billing"]


def test_a_task_without_hub_data_needs_a_source():
    with pytest.raises(ConfigError, match="names no hub data set"):
        load_examples(Task.model_validate(TICKETS), "train")


def test_datasets_is_imported_for_the_hub_only(tmp_path):
    path = write_records(tmp_path / "x.jsonl", [REVIEW])
    code = (
        "import sys; from training.tasks import load_examples;"
        f"load_examples('sst2', 'train', {str(path)!r}); print('datasets' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
