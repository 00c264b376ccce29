"""Records that do not fit, and what becomes of the records' own columns."""

import csv
import math
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pytest
from pyarrow import parquet

from dalorra.errors import ConfigError, InputError
from dalorra.scoring.answers import ANSWER_COLUMNS
from dalorra.scoring.run import locally, score_file
from tests.scoring import TEXTS, left_over, never_loaded, records_of, run

# --- records that do not fit ---

BAD = {
    '{"text": "wrong column"}': "no column 'sentence' for the field 'sentence'; it has 'text'",
    '{"sentence": 7}': "column 'sentence' holds 7, expected text",
    '{"sentence": null}': "column 'sentence' holds None, expected text",
    '{"sentence": "  "}': "input is empty",
    '{"sentence": "\\ud800"}': "half of a surrogate pair",
    '{"sentence": ': "not JSON",
    "[1]": "a list, expected an object",
    "\udcff": "not UTF-8",
}


@pytest.mark.parametrize(("line", "problem"), BAD.items())
def test_a_record_that_does_not_fit_stops_the_run_before_anything_is_done(job, line, problem):
    content = f'{{"sentence": "fine"}}\n\n{line}\n'.encode(errors="surrogateescape")
    asked = job(content)
    with pytest.raises(InputError) as refusal:
        score_file(asked, locally(never_loaded))
    assert f"{asked.source}, row 3: " in str(refusal.value)
    assert problem in str(refusal.value)
    assert "--on-error record" in str(refusal.value)
    assert left_over(asked) == set()


@pytest.mark.parametrize("out", ["out.jsonl", "out.parquet"])
def test_or_what_is_wrong_becomes_its_answer(job, predictor, out):
    lines = ['{"sentence": "fine"}', *(line for line in BAD if "7" not in line)]
    if out == "out.parquet":
        lines = [line for line in lines if "ud800" not in line]
    content = "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")
    answered = run(job(content, out, on_error="record"), predictor)
    assert answered[0]["error"] is None
    assert len(answered) == len(lines)
    for line, text in zip(answered[1:], lines[1:], strict=True):
        assert BAD[text] in line["error"]
        assert all(line[name] is None for name in ANSWER_COLUMNS if name != "error")


def test_a_file_in_which_nothing_fits_is_refused(job):
    with pytest.raises(InputError, match=r"none of the 2 rows fits; .*row 1: no column 'sentence'"):
        run(job([{"a": "x"}, {"a": "y"}], on_error="record"), never_loaded)


@pytest.mark.parametrize(("name", "content"), [("in.jsonl", "\n"), ("in.csv", "sentence\n")])
def test_a_file_without_records_is_refused(job, name, content):
    with pytest.raises(ConfigError, match="holds no rows"):
        run(job(content, name=name), never_loaded)


def test_a_missing_file_is_named(job):
    asked = job([])
    asked.source.unlink()
    with pytest.raises(ConfigError, match=r"in\.jsonl cannot be read: No such file"):
        run(asked, never_loaded)


def test_an_unknown_field_or_form_is_refused(job):
    with pytest.raises(ConfigError, match="no field 'text': it has sentence"):
        job([], names={"text": "sentence"})
    with pytest.raises(ConfigError, match=r"must end in \.jsonl or \.parquet"):
        job([], "out.csv")


# --- own columns ---


def test_a_column_called_like_an_answer_gets_another_name(job, predictor):
    answered = run(
        job([{"text": "fine", "label": 1, "row": 9}], names={"sentence": "text"}), predictor
    )
    assert [answered[0][name] for name in ("input_label", "input_row", "label", "row")] == [
        1,
        9,
        "positive",
        1,
    ]


@pytest.mark.parametrize("out", ["out.jsonl", "out.parquet"])
def test_two_columns_never_become_one(job, out):
    records = records_of(TEXTS, label=1, input_label=0)
    with pytest.raises(ConfigError, match="row 1: columns 'label' and 'input_label' would"):
        run(job(records, out), never_loaded)


@pytest.mark.parametrize("out", ["out.jsonl", "out.parquet"])
def test_own_columns_can_be_left_out(job, predictor, out):
    answered = run(
        job(records_of(TEXTS, label=1, input_label=0), out, keep_columns=False), predictor
    )
    assert [set(line) for line in answered] == [{"row", *ANSWER_COLUMNS}] * 5


def test_records_of_a_csv_file(job, predictor, tmp_path):
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "sentence"], ["a", "two\nlines, quoted"], ["b", "ok"]])
    content = (tmp_path / "table.csv").read_bytes()
    (tmp_path / "table.csv").unlink()
    answered = run(job(content, name="in.csv"), predictor)
    assert [(line["row"], line["id"], line["sentence"]) for line in answered] == [
        (1, "a", "two\nlines, quoted"),
        (2, "b", "ok"),
    ]


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
    }
)


def as_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def test_a_parquet_table_keeps_its_types(job, predictor):
    asked = job(as_parquet(TYPED), "out.parquet", "in.parquet")
    run(asked, predictor)
    scored = parquet.read_table(asked.out)
    assert scored.select(TYPED.column_names).equals(TYPED)
    assert scored.schema.field("row").type == pa.int64()
    assert scored.schema.field("probabilities").type == pa.struct(
        [("negative", pa.float64()), ("positive", pa.float64())]
    )


def test_a_parquet_table_becomes_json_lines(job, predictor):
    table = TYPED.drop_columns("raw")
    answered = run(job(as_parquet(table), "out.jsonl", "in.parquet"), predictor)
    assert answered[0]["at"] == "2026-01-02T03:04:05.000006+00:00"
    assert answered[0]["price"] == "1.10"
    assert answered[0]["score"] is None
    assert answered[2]["nested"] == {"a": None, "b": "t"}


def test_what_json_cannot_hold_is_refused_at_the_start(job):
    with pytest.raises(ConfigError, match=r"row 1: JSON cannot hold bytes: write a \.parquet"):
        run(job(as_parquet(TYPED), "out.jsonl", "in.parquet"), never_loaded)


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


@pytest.mark.parametrize("odd", [["a"], "a", 2**80])
def test_a_column_without_one_type_is_refused_at_the_start(job, odd):
    records = [*records_of(TEXTS, n=1), {"sentence": "last", "n": odd}]
    with pytest.raises(ConfigError, match="column 'n' has no one type that parquet could hold"):
        run(job(records, "out.parquet"), never_loaded)


def test_odd_texts_and_numbers_stay_what_they_are(job, predictor):
    content = '{"sentence": "Größe", "odd": "\\ud83d", "n": NaN}\n'
    asked = job(content)
    (answered,) = run(asked, predictor)
    assert (answered["sentence"], answered["odd"], answered["n"]) == ("Größe", "\ud83d", None)
