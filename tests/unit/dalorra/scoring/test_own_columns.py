"""What becomes of the records' own columns, in every form of the finished file."""

import csv
import json
import math
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from dalorra.scoring.answers import ANSWER_COLUMNS
from dalorra.scoring.own_columns import output_name
from dalorra.scoring.run import locally, score_file
from tests.fakes import FakePredictor
from tests.scoring import TEXTS, read, records_of, run

FORMS = ["out.jsonl", "out.csv", "out.parquet"]
every_form = pytest.mark.parametrize("out", FORMS)

# --- names ---


def test_a_column_called_like_an_answer_gets_another_name(job, predictor):
    records = [{"text": "fine", "label": 1, "row": 9, "input_label": 2}]
    (answered,) = run(job(records, names={"sentence": "text"}), predictor)
    names = ("input_label", "input_row", "input_input_label", "label", "row")
    assert [answered[name] for name in names] == [1, 9, 2, "positive", 1]


ANSWERS_NAMES = st.sampled_from(["row", *ANSWER_COLUMNS]) | st.text(max_size=3)


@given(st.sets(st.builds("".join, st.tuples(st.sampled_from(["", "input_"]), ANSWERS_NAMES))))
def test_two_columns_never_become_one(names):
    named = set(map(output_name, names))
    assert len(named) == len(names)
    assert named.isdisjoint(("row", *ANSWER_COLUMNS))


@every_form
def test_a_scored_file_can_be_scored(job, predictor, tmp_path, out):
    first = job(records_of(TEXTS), out)
    run(first, predictor)
    again = job(first.out.read_bytes(), f"again_{out}", f"once_{out}")
    for before, after in zip(read(first.out), run(again, FakePredictor()), strict=True):
        assert after["sentence"] == before["sentence"]
        assert after["input_label"] == after["label"] == before["label"]


@every_form
def test_own_columns_can_be_left_out(job, predictor, out):
    answered = run(job(records_of(TEXTS, label=1), out, keep_columns=False), predictor)
    assert [set(line) for line in answered] == [{"row", *ANSWER_COLUMNS}] * 5


# --- cells ---

CELLS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["\ud83d", 2**53 + 1, 2**63, -(2**70), math.inf, "", {}, []]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=6,
)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), CELLS), min_size=1, max_size=7))
def test_whatever_other_columns_hold_is_written(job, tmp_path, records):
    records = [{**record, "sentence": f"text {n}"} for n, record in enumerate(records)]
    for out in FORMS:
        asked = job(records, out)
        asked.out.unlink(missing_ok=True)
        answered = run(asked, FakePredictor())
        assert [line["sentence"] for line in answered] == [r["sentence"] for r in records]


@every_form
def test_texts_of_a_csv_file_stay_what_they_are(job, predictor, tmp_path, out):
    with (tmp_path / "table.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [["id", "sentence"], ["", 'two\nlines,\r "quoted"'], ["007", "x" * 140_000]]
        csv.writer(file).writerows(rows)
    content = (tmp_path / "table.csv").read_bytes()
    answered = run(job(content, out, name="in.csv"), predictor)
    assert [[line["id"], line["sentence"]] for line in answered] == rows[1:]


def test_odd_texts_and_numbers_stay_what_they_are(job, predictor):
    content = '{"sentence": "Größe", "odd": "\\ud83d", "n": NaN}\n'
    (answered,) = run(job(content), predictor)
    assert (answered["sentence"], answered["odd"], answered["n"]) == ("Größe", "\ud83d", None)


def test_csv_has_json_where_there_is_no_text(job, predictor):
    records = [{"sentence": "fine", "a": [1, None], "b": True, "c": None, "d": 0.5, "e": "true"}]
    (answered,) = run(job(records, "out.csv"), predictor)
    assert [answered[name] for name in "abcde"] == ["[1, null]", "true", "", "0.5", "true"]
    assert json.loads(answered["probabilities"])["positive"] == float(answered["probability"])


# --- parquet ---

TYPED = pa.table(
    {
        "sentence": ["one", "two", "three"],
        "at": pa.array(
            [datetime(2026, 1, 2, 3, 4, 5, 6, UTC), None, None], pa.timestamp("us", "UTC")
        ),
        "price": pa.array([Decimal("1.10"), None, Decimal("2.00")], pa.decimal128(9, 2)),
        "small": pa.array([1, 2, None], pa.int8()),
        "raw": pa.array([b"\x00\xff", None, b""]),
        "tags": pa.array([["a"], [], None]),
        "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
        "nested": pa.array([{"a": 1, "b": None}, None, {"a": None, "b": "t"}]),
        "score": pa.array([math.inf, 0.5, None]),
        "exact": pa.array([1_000_000_001, None, 1], pa.time64("ns")),
        "far": pa.array([1, 2**62, None], pa.timestamp("us")),
        "twice": pa.StructArray.from_arrays([pa.array([1, 2, 3])] * 2, ["a", "a"]),
        "text.of": ["x", None, "z"],
    }
)


def as_parquet(table: pa.Table, **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def test_a_parquet_table_is_copied_as_it_is(job, predictor):
    asked = job(as_parquet(TYPED), "out.parquet", "in.parquet")
    score_file(asked, locally(lambda: predictor))
    scored = parquet.read_table(asked.out)
    assert scored.select(TYPED.column_names).equals(TYPED)
    assert scored.column("row").to_pylist() == [1, 2, 3]
    assert scored.schema.field("row").type == pa.int64()
    assert scored.schema.field("probabilities").type == pa.struct(
        [("negative", pa.float64()), ("positive", pa.float64())]
    )


@pytest.mark.parametrize("out", ["out.jsonl", "out.csv"])
def test_or_becomes_text_where_the_form_has_no_word_for_it(job, predictor, capsys, out):
    answered = run(job(as_parquet(TYPED), out, "in.parquet"), predictor)
    assert answered[0]["at"] == "2026-01-02T03:04:05.000006+00:00"
    assert answered[0]["price"] == "1.10"
    assert answered[0]["raw"] == "AP8="
    assert not answered[0]["score"]
    nested = answered[2]["nested"]
    assert (json.loads(nested) if out == "out.csv" else nested) == {"a": None, "b": "t"}
    assert not answered[1]["far"]
    assert "column 'far' stays empty where it cannot be read" in capsys.readouterr().err


def test_a_column_that_cannot_be_read_is_left_out(job, predictor, capsys):
    table = TYPED.select(["sentence", "score"]).append_column("odd", pa.array(["a", "b", "c"]))
    content = bytearray(as_parquet(table, use_dictionary=False, compression="none"))
    pages = parquet.ParquetFile(pa.BufferReader(bytes(content))).metadata.row_group(0).column(2)
    content[pages.data_page_offset : pages.data_page_offset + 20] = b"\xff" * 20
    asked = job(bytes(content), "out.parquet", "in.parquet")
    score_file(asked, locally(lambda: predictor))
    scored = parquet.read_table(asked.out)
    assert scored.column("sentence").to_pylist() == ["one", "two", "three"]
    assert "odd" not in scored.column_names
    assert "column 'odd' is left out: it cannot be read" in capsys.readouterr().err


def test_types_of_json_lines_are_found_over_all_records(job, predictor):
    records = [
        {"sentence": "one", "n": 1},
        {"sentence": "two", "n": None, "late": ["a"]},
        {"sentence": "three", "n": 2.5},
    ]
    asked = job(records, "out.parquet")
    run(asked, predictor)
    scored = parquet.read_table(asked.out)
    assert scored.schema.field("n").type == pa.float64()
    assert scored.column("n").to_pylist() == [1.0, None, 2.5]
    assert scored.column("late").to_pylist() == [None, ["a"], None]


@pytest.mark.parametrize("odd", [["a"], "a", 2**80, 2**63, 0.5, {}])
def test_a_column_without_one_type_becomes_json(job, predictor, capsys, monkeypatch, odd):
    monkeypatch.setattr("dalorra.scoring.run._LOOK_RECORDS", 2)
    records = [*records_of(TEXTS, n=2**53 + 1), {"sentence": "last", "n": odd}]
    answered = run(job(records, "out.parquet"), predictor)
    assert [json.loads(line["n"]) for line in answered] == [2**53 + 1] * 5 + [odd]
    assert "column 'n' has no one type that parquet could hold" in capsys.readouterr().err


def test_an_object_without_keys_is_json_too(job, predictor):
    answered = run(job(records_of(TEXTS, n={}), "out.parquet"), predictor)
    assert [line["n"] for line in answered] == ["{}"] * 5
