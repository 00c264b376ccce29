"""What a run trains on, selects with, calibrates on and is scored on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config import DataConfig, TrainingConfig
from training.data import calibration_size, divide, least_to_calibrate, load_data
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
