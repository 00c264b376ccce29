"""What the reader of a table promises, for every kind of file."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from dalorra.errors import ConfigError
from dalorra.tables import MAX_DEPTH, SUFFIXES, Record, Unreadable, read_records
from tests.task_files import write_records

every_kind = pytest.mark.parametrize("suffix", SUFFIXES)
both_jsons = pytest.mark.parametrize("suffix", [".json", ".jsonl"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tables")


def read(path: Path) -> list[Record]:
    return list(read_records(path))


def values(path: Path) -> list[object]:
    return [record.values for record in read(path)]


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def one_object(suffix: str, content: str) -> str:
    return f"[{content}]" if suffix == ".json" else content


# --- the same records, whatever the file ---

# The mark at the start of a file is no part of its first name.
NAMES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\ufeff"), max_size=8),
    min_size=1,
    max_size=4,
    unique=True,
)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
TYPED = (
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.booleans(),
    st.lists(TEXTS, max_size=3),
)


@st.composite
def tables(draw, columns):
    names = draw(NAMES)
    cells = [draw(columns) for _ in names]
    rows = draw(st.integers(1, 5))
    drawn = [[draw(cell) for _ in range(rows)] for cell in cells]
    return [dict(zip(names, row, strict=True)) for row in zip(*drawn, strict=True)]


@settings(deadline=None, max_examples=50)
@given(tables(st.just(TEXTS)))
def test_a_table_of_texts_is_the_same_in_every_kind_of_file(folder, table):
    for suffix in SUFFIXES:
        records = read(write_records(folder / f"texts{suffix}", table))
        assert [record.values for record in records] == table
        assert [record.number for record in records] == list(range(1, len(table) + 1))
        assert {record.problem for record in records} == {None}


@settings(deadline=None, max_examples=50)
@given(tables(st.sampled_from(TYPED).map(lambda cell: st.none() | cell)))
def test_numbers_lists_and_missing_cells_are_the_same_where_files_have_them(folder, table):
    for suffix in (".json", ".jsonl", ".parquet"):
        assert values(write_records(folder / f"typed{suffix}", table)) == table


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=200), st.sampled_from(SUFFIXES))
def test_whatever_is_in_the_file_is_records_or_one_sentence(folder, content, suffix):
    try:
        read(written(folder / f"noise{suffix}", content))
    except ConfigError as refusal:
        assert len(str(refusal).splitlines()) == 1  # noqa: PT017 - most noise is no error


@settings(deadline=None, max_examples=50)
@given(st.data(), st.sampled_from(SUFFIXES))
def test_nor_does_damage_in_the_middle_show_a_traceback(folder, data, suffix):
    table = [{"text": f"row {n}", "more": str(n) * 20} for n in range(8)]
    content = bytearray(write_records(folder / f"whole{suffix}", table).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        read(written(folder / f"damaged{suffix}", bytes(content)))
    except ConfigError as refusal:
        assert len(str(refusal).splitlines()) == 1  # noqa: PT017 - some damage is none


# --- guarantees, one by one ---


@every_kind
def test_a_cell_may_be_of_any_length(folder, suffix):
    table = [{"text": "x" * 140_000 + ', "quoted"\n'}, {"text": "y"}]
    assert values(write_records(folder / f"long{suffix}", table)) == table


@every_kind
@pytest.mark.parametrize("names", [["text"], ["text", "more"]])
def test_an_empty_cell_keeps_its_row(folder, suffix, names):
    table = [dict.fromkeys(names, cell) for cell in ("a", "", "", "b", "")]
    assert values(write_records(folder / f"empty{suffix}", table)) == table


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("blank.csv", 'text\n\na\n\r\n""\n\nb\n\n'),
        ("first.csv", '\n\ntext\na\n""\nb\n'),
        ("blank.jsonl", '\n{"text": "a"}\n  \t\n{"text": ""}\n\r\n{"text": "b"}\n'),
        ("blank.json", '\n[{"text": "a"},\n\n{"text": ""}, {"text": "b"}]\n\n'),
    ],
)
def test_a_blank_line_holds_no_record(folder, name, content):
    assert values(written(folder / name, content)) == [{"text": t} for t in ("a", "", "b")]


@both_jsons
def test_a_key_that_occurs_twice_is_that_records_problem(folder, suffix):
    content = one_object(suffix, '{"a": "1", "b": "2", "a": "3"}')
    (record,) = read(written(folder / f"twice{suffix}", content))
    assert record.problem == "has the key 'a' twice"
    assert record.values == {}


@both_jsons
def test_or_that_cells_where_it_is_nested(folder, suffix):
    content = one_object(suffix, '{"text": "fine", "odd": [{"b": {"a": 1, "a": 2}}]}')
    (record,) = read(written(folder / f"nested{suffix}", content))
    assert record.values == {"text": "fine", "odd": Unreadable("has the key 'a' twice")}


def test_a_header_with_a_name_twice_is_refused(folder):
    twice = pa.table([pa.array(["x"]), pa.array(["y"]), pa.array(["z"])], names=["a", "b", "b"])
    parquet.write_table(twice, folder / "twice.parquet")
    written(folder / "twice.csv", "a,b,b\nx,y,z\n")
    for suffix in (".csv", ".parquet"):
        with pytest.raises(ConfigError, match="the column name 'b' occurs twice"):
            read(folder / f"twice{suffix}")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("latin.csv", b"text,odd\nfine,caf\xe9\n"),
        ("latin.json", b'[{"text": "fine", "odd": "caf\xe9"}]'),
        ("latin.jsonl", b'{"text": "fine", "odd": "caf\xe9"}\n'),
    ],
)
def test_bytes_of_another_encoding_harm_their_own_cell(folder, name, content):
    (record,) = read(written(folder / name, content))
    assert record.problem is None
    assert record.values["text"] == "fine"
    odd = record.values["odd"]
    assert isinstance(odd, Unreadable)
    assert "not UTF-8 text" in odd.problem
    assert odd.raw == "caf\udce9"


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
def test_utf_16_is_named(folder, suffix):
    path = written(folder / f"wide{suffix}", "text\nfine\n".encode("utf-16"))
    with pytest.raises(ConfigError, match="is UTF-16: save it as UTF-8"):
        read(path)


@both_jsons
@pytest.mark.parametrize(
    ("odd", "problem"),
    [
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested more than"),
        ("9" * 5000, "a number of 5000 digits"),
        ('["\\ud83d", "fine"]', None),
        ('"\\ud83d"', "half of a surrogate pair"),
        ("1e999", None),
    ],
)
def test_what_no_value_stands_for_harms_its_own_cell(folder, suffix, odd, problem):
    content = one_object(suffix, f'{{"text": "fine", "odd": {odd}}}')
    (record,) = read(written(folder / f"odd{suffix}", content))
    assert record.values["text"] == "fine"
    if problem is None:
        assert not isinstance(record.values["odd"], Unreadable)
    else:
        assert problem in record.values["odd"].problem


@pytest.mark.parametrize("content", ["[" * 100_000, '[{"a": ' * 50_000])
def test_brackets_without_end_are_no_json(folder, content):
    with pytest.raises(ConfigError, match=r"not JSON \("):
        read(written(folder / "deep.json", content))
    (record,) = read(written(folder / "deep.jsonl", content))
    assert record.problem.startswith("not JSON (")


def test_names_are_text(folder):
    path = written(folder / "names.csv", b"text,caf\xe9\nfine,x\n")
    assert values(path) == [{"text": "fine", "caf\\xe9": "x"}]
    path = written(folder / "names.jsonl", '{"text": "fine", "\\ud83d": 1}\n')
    assert values(path) == [{"text": "fine", "\\ud83d": 1}]


# --- parquet columns that Python has no values for ---


def invalid_utf8() -> pa.Array:
    offsets = pa.array([0, 4, 6], pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"fine\xff\xfe")])


ODD = {
    "far": pa.array([1, 2**62], pa.timestamp("us")),
    "nowhere": pa.array([1, 2], pa.timestamp("us", "Nowhere/Land")),
    "late": pa.array([1, 2**30], pa.date32()),
    "undecodable": invalid_utf8(),
    "twice": pa.StructArray.from_arrays([pa.array([1, 2]), pa.array([3, 4])], ["a", "a"]),
}
EVEN = {
    "exact": pa.array([1_000_000_001, None], pa.timestamp("ns")),
    "half": pa.array([1.5, None], pa.float16()),
    "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
    "uuid": pa.array([b"0" * 16, None], pa.uuid()),
    "view": pa.array(["a", None], pa.string_view()),
    "kinds": pa.array(["a", None]).dictionary_encode(),
    "a.b": pa.array([1, 2]),
    "a": pa.array([{"b": 1}, {"b": 2}]),
    "": pa.array([1, 2]),
    "nothing": pa.nulls(2),
}


def odd_table() -> pa.Table:
    return pa.table({**ODD, "text": ["one", "two"], **EVEN})


def test_a_column_without_python_values_harms_its_own_cells(folder):
    parquet.write_table(odd_table(), folder / "odd.parquet")
    first, second = read(folder / "odd.parquet")
    assert [record.values["text"] for record in (first, second)] == ["one", "two"]
    assert second.problem is None
    for name in ODD:
        assert isinstance(second.values[name], Unreadable), name
    for name, column in EVEN.items():
        assert first.values[name] == column[0].as_py(), name
    assert first.values["undecodable"] == "fine"


def with_a_damaged_column(path: Path, rows: int = 3000) -> Path:
    """A file in which the pages of the column `odd`, the second of three, are noise."""
    table = pa.table(
        {
            "text": [f"text {n}" for n in range(rows)],
            "odd": [f"{math.sin(n)}" for n in range(rows)],
            "after": list(range(rows)),
        }
    )
    parquet.write_table(table, path, use_dictionary=False, compression="snappy")
    with parquet.ParquetFile(path) as file:
        column = file.metadata.row_group(0).column(1)
    content = bytearray(path.read_bytes())
    start = column.data_page_offset
    content[start + 8 : start + 400] = b"\xff" * 392
    path.write_bytes(content)
    return path


def test_a_damaged_column_leaves_the_others(folder):
    records = read(with_a_damaged_column(folder / "damaged.parquet"))
    assert [record.values["text"] for record in records] == [f"text {n}" for n in range(3000)]
    assert [record.values["after"] for record in records] == list(range(3000))
    assert isinstance(records[0].values["odd"], Unreadable)


def test_one_sentence_says_that_it_is_no_table(folder):
    for name, content, part in (
        ("no.json", '{"a": 1, "a": 2}', "an object, expected a list"),
        ("no.json", "3", "a int, expected a list"),
        ("no.json", json.dumps([{"text": "a"}])[:-1], "not JSON"),
        ("no.csv", 'text\n"open', "not CSV"),
        ("no.parquet", "PAR1", "no.parquet"),
    ):
        with pytest.raises(ConfigError) as refusal:
            read(written(folder / name, content))
        assert part in str(refusal.value)
