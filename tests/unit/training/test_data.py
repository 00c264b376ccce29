"""What a run trains on, selects with, calibrates on and is scored on."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dalorra.errors import ConfigError
from training.config import DataConfig, TrainingConfig
from training.data import calibration_size, divide, least_to_calibrate, load_data, mixed
from training.orthography import spellings, words
from training.tasks import Example


def numbered(n: int) -> list[Example]:
    return [Example({"text": f"text {i} ."}, "ab"[i % 2]) for i in range(n)]


@pytest.mark.parametrize(
    ("calibration", "n", "expected"),
    [
        ("auto", 40, 0),
        ("auto", 599, 0),
        ("auto", 600, 120),
        ("auto", 6920, 1384),
        ("auto", 10**6, 2000),
        (0, 700, 0),
        (0.5, 700, 350),
        (30, 700, 30),
    ],
)
def test_a_fifth_is_set_aside_where_that_shows_an_error_of_5_percent(calibration, n, expected):
    assert calibration_size(DataConfig(calibration=calibration), n, 0.05) == expected


@given(st.floats(1e-4, 0.5))
def test_the_least_that_a_run_names_is_the_least_that_it_calibrates_on(target):
    least = least_to_calibrate(target)
    assert calibration_size(DataConfig(), least, target) > 0
    assert calibration_size(DataConfig(), least - 1, target) == 0


@given(st.integers(20, 80), st.just(0) | st.integers(2, 9), st.booleans(), st.integers(0, 3))
def test_the_parts_share_no_input_and_leave_none_out(n, calibration, augmented, seed):
    examples = numbered(n)
    if augmented:  # each twice, in two spellings
        examples = [spelt for e in examples for spelt in spellings(e)[1:3]]
    data = DataConfig(
        holdout=6, evaluation_holdout=4, augment="orthography" if augmented else "none"
    )
    parts = divide(examples, data, calibration=calibration, seed=seed)
    sides = [parts.train, parts.holdout, parts.calibration, parts.test]
    texts = [{words(e).input["text"] for e in side} for side in sides]
    assert sum(map(len, texts)) == n
    assert sum(map(len, sides)) == len(examples)
    per_input = 2 if augmented else 1
    assert len(parts.calibration) == calibration - calibration % per_input


def test_runs_of_all_seeds_calibrate_on_the_same_examples_and_hold_out_others():
    parts = [divide(numbered(300), DataConfig(), calibration=60, seed=seed) for seed in (1, 2)]
    assert parts[0].calibration == parts[1].calibration
    assert parts[0].holdout != parts[1].holdout


def test_the_record_of_a_part_gives_it_again_whatever_the_rule_that_sized_it():
    examples = [*numbered(90), *numbered(30)]  # repeats: no exact size
    parts = divide(examples, DataConfig(), calibration=25, seed=3)
    assert len(parts.calibration) <= 25
    again = divide(examples, DataConfig(), calibration=len(parts.calibration), seed=3)
    assert again == parts


def test_examples_are_set_aside_by_number_before_the_training_set_is_limited(files, tmp_path):
    config = TrainingConfig(
        name="one",
        output_dir=tmp_path,
        task=str(files / "task.yaml"),
        data={"source": files / "data", "calibration": 4, "holdout": 0.25, "train_limit": 9},
    )
    data = load_data(config, config.resolved_task())
    sizes = [len(part) for part in (data.train, data.holdout, data.calibration, data.test)]
    assert sizes == [9, 5, 4, 12]


@given(st.integers(20, 200), st.integers(20, 200), st.floats(0.05, 0.9))
def test_a_mixture_has_its_share_and_could_not_be_larger(inside, outside, share):
    answered = numbered(inside)
    others = [Example({"text": f"other {i}"}, "oos") for i in range(outside)]
    found = mixed(answered, others, share)
    beyond = sum(example in others for example in found)
    within = len(found) - beyond
    assert abs(beyond - share * len(found)) <= 1.0, "to a text"
    # One of the kinds is used up, but for what the share rounds off of a text of the other.
    odds = share / (1.0 - share)
    assert within == inside or outside - beyond <= max(odds, 1.0)


@pytest.mark.parametrize("parts", [([], numbered(3)), (numbered(3), [])])
def test_a_mixture_of_one_kind_is_refused(parts):
    with pytest.raises(ConfigError, match=r"0\.2 out of scope cannot be had of . texts"):
        mixed(*parts, 0.2)


def test_out_of_scope_texts_calibrate_and_are_scored_but_never_trained_on(files, tmp_path):
    task = yaml.safe_load((files / "task.yaml").read_text()) | {"out_of_scope": ["other"]}
    for split in ("train", "validation"):
        lines = (files / "data" / "reviews" / f"{split}.jsonl").read_text()
        others = "".join(json.dumps({"text": f"{i}?", "label": "other"}) + "\n" for i in range(3))
        path = tmp_path / "data" / "reviews" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines + others)
    config = TrainingConfig(
        name="one",
        output_dir=tmp_path,
        task=task,
        data={"source": tmp_path / "data", "calibration": 8, "holdout": 4, "out_of_scope": 0.25},
    )
    data = load_data(config, config.resolved_task())
    sizes = [len(part) for part in (data.train, data.holdout, data.calibration, data.test)]
    assert sizes == [12, 4, 8, 12]
    assert [example.label for example in data.mixture].count("other") == 3
    assert len(data.mixture) == 11
    assert [example.label for example in data.outside] == ["other"] * 3
    plain = config.model_copy(update={"data": DataConfig(source=tmp_path / "data", calibration=8)})
    data = load_data(plain, plain.resolved_task())
    assert data.mixture == data.calibration
    assert len(data.outside) == 3
