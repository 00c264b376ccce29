from pathlib import Path
from typing import Any

import pytest

from dalorra.errors import ConfigError
from dalorra.questions import Asked
from tests.task_files import write_records
from training.config import DataConfig
from training.question_data import load_questions
from training.tasks import Example, QuestionTask

REVIEWS = [
    {"sentence": f"film number {n} is {'good' if n % 2 else 'bad'}", "label": n % 2}
    for n in range(80)
]
NEWS = [{"text": f"Item {n} of the news.", "label": n % 4} for n in range(60)]
ASKED = [{"text": f"Who was number {n} ?", "coarse_label": "HUM"} for n in range(50)]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_records(folder / "sst2/train.jsonl", REVIEWS)
    # The same texts in another spelling, and one of its own.
    same = [{"text": row["sentence"].upper() + " !", "label": row["label"]} for row in REVIEWS[:30]]
    write_records(folder / "rotten_tomatoes/test.jsonl", [*same, {"text": "new", "label": 1}])
    write_records(folder / "ag_news/train.jsonl", NEWS)
    write_records(folder / "trec/train.jsonl", ASKED)
    return folder


def loaded(source: Path, **changes: Any) -> Any:
    data = {"source": source, "holdout": 10, **changes.pop("data", {})}
    seed = changes.pop("seed", 1)
    task = QuestionTask.model_validate(
        {
            "name": "q",
            "sets": ["sst2", "ag_news"],
            "held_out": ["trec"],
            "per_set": 70,
            "evaluated": 40,
        }
        | changes
    )
    return load_questions(DataConfig(**data), task, seed)


def records_of(examples: list[Example]) -> set[str]:
    """Numbers in the states, by kind of state."""
    states = [e.input.state for e in examples if isinstance(e.input, Asked)]
    return {
        "".join(c for c in state if c.isdigit()) + state.split()[-1].strip('."}')
        for state in states
    }


def test_no_record_is_on_two_sides(source):
    data = loaded(source, elsewhere=0.0)
    parts = [records_of(part) for part in (data.train, data.holdout, data.calibration, data.test)]
    for n, one in enumerate(parts):
        for other in parts[n + 1 :]:
            assert not one & other
    assert all(parts)


def test_held_out_kinds_are_not_trained_or_selected_on(source):
    data = loaded(source)
    assert {e.kind for e in data.train} == {e.kind for e in data.holdout} == {"sst2", "ag_news"}
    assert {e.kind for e in data.calibration} == {"trec"}
    assert {e.kind for e in data.test} == {"sst2", "ag_news", "trec"}
    assert len([e for e in data.train if e.kind == "sst2"]) == 70


def test_what_is_evaluated_on_is_trained_on_in_no_other_set(source):
    alone = loaded(source, elsewhere=0.0)
    beside = loaded(source, elsewhere=0.0, held_out=["rotten_tomatoes/test", "trec"])
    shared = {f"{n}{'good' if n % 2 else 'bad'}" for n in range(30)}
    assert records_of(alone.train) & shared
    assert not records_of(beside.train) & shared


def test_the_seed_decides_what_is_trained_on_and_never_what_is_evaluated(source):
    one, same, other = loaded(source), loaded(source), loaded(source, seed=2)
    assert one == same
    assert one.train != other.train
    assert (one.test, one.calibration) == (other.test, other.calibration)


def test_questions_about_another_state_are_open_and_apart(source):
    data = loaded(source, elsewhere=0.5)
    open_ones = [e for e in data.train if not e.label]
    assert 20 < len(open_ones) < 100
    assert data.outside
    assert all(e.label for e in data.test + data.holdout + data.calibration)
    assert all(len(set(e.target)) == 1 for e in data.outside)
    assert not [e for e in loaded(source, elsewhere=0.0).outside if e.kind != "sst2"]


def test_limits_hold(source):
    data = loaded(source, data={"train_limit": 30, "evaluation_limit": 20})
    assert (len(data.train), len(data.test) + len(data.outside)) == (30, 20)
    short = loaded(source, longest_state=24, sets=["ag_news"], per_set=20, elsewhere=0.0)
    assert len(short.train) == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sets": ["mmlu_physics"]}, "no recipe makes questions of 'mmlu_physics'"),
        ({"data": {"calibration": 10}}, r"data\.calibration: questions are"),
        ({"data": {"evaluation_split": "test"}}, r"data\.evaluation_split: questions are"),
        ({"evaluated": 12}, "12 questions about these sets are too few"),
        ({"sets": ["sst2/test"]}, "has no sst2/test.jsonl"),
    ],
)
def test_what_cannot_be_is_refused(source, changes, message):
    with pytest.raises(ConfigError, match=message):
        loaded(source, elsewhere=0.0, **changes)


def test_a_set_is_trained_on_or_held_out():
    with pytest.raises(ValueError, match="'sst2' is named twice"):
        QuestionTask(name="q", sets=("sst2",), held_out=("sst2",))
