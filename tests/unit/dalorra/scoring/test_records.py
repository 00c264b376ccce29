"""Records that do not fit."""

import pytest

from dalorra.errors import ConfigError, InputError
from dalorra.scoring.answers import ANSWER_COLUMNS
from dalorra.scoring.run import locally, score_file
from tests.scoring import left_over, never_loaded, run

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


@pytest.mark.parametrize("out", ["out.jsonl", "out.csv", "out.parquet"])
def test_or_what_is_wrong_becomes_its_answer(job, predictor, out):
    lines = ['{"sentence": "fine"}', *(line for line in BAD if "7" not in line)]
    content = "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")
    answered = run(job(content, out, on_error="record"), predictor)
    assert not answered[0]["error"]
    assert len(answered) == len(lines)
    for line, text in zip(answered[1:], lines[1:], strict=True):
        assert BAD[text] in line["error"]
        assert not any(line[name] for name in ANSWER_COLUMNS if name != "error")


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
    with pytest.raises(ConfigError, match=r"must end in one of \.jsonl, \.csv, \.parquet"):
        job([], "out.json")
