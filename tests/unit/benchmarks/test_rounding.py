"""The rounding benchmark: what it compares, and that float32 hardly rounds."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.rounding import differences, in_batches
from dalorra.decision.policy import Policy
from dalorra.predictor import Predictor
from tests.fakes import prediction
from tests.tiny import SENTENCES, tiny_folders

POLICY = Policy(min_probability=0.7, max_variance=0.01, source="a test")


def test_differences_of_a_case_worked_out_by_hand():
    other = replace(
        prediction(0.8, 0.0), label="negative", probabilities={"negative": 0.8, "positive": 0.2}
    )
    found = [prediction(0.9, 0.005), prediction(0.9, 0.0), prediction(0.6, 0.02)]
    expected = [prediction(0.8, 0.015), other, prediction(0.6, 0.02)]
    assert differences(found, expected, POLICY) == pytest.approx(
        {
            "p_median": 0.1,
            "p_95": 0.64,
            "p_most": 0.7,
            "variance_most": 0.01,
            "other_label": 1,
            "other_decision": 1,
            "accepted_other_label": 1,
        }
    )


def test_an_answer_does_not_depend_on_its_batch(tmp_path):
    adapter, base = tiny_folders(tmp_path)
    predictor = Predictor.load(adapter, str(base), dtype="float32")
    prompts = [predictor.encode(sentence) for sentence in SENTENCES]
    alone, together = in_batches(predictor, prompts, 1), in_batches(predictor, prompts, 3)
    assert len(alone) == len(prompts)
    assert np.std([answer.probability for answer in alone]) > 1e-3
    assert differences(alone, together, POLICY)["p_most"] < 1e-5
