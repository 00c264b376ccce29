"""The rounding benchmark: what it compares, and that float32 hardly rounds."""

import pytest
import torch

from benchmarks.rounding import differences, in_batches
from dalorra.predictor import Predictor
from tests.tiny import SENTENCES, tiny_folders


def test_differences_of_a_case_worked_out_by_hand():
    found = torch.tensor([[[0.6, 0.4], [0.6, 0.4]], [[0.4, 0.6], [0.6, 0.4]]])
    expected = torch.tensor([[[0.4, 0.6], [0.4, 0.6]], [[0.5, 0.5], [0.5, 0.5]]])
    assert differences(found, expected) == pytest.approx(
        {"p_median": 0.0, "p_95": 0.19, "p_most": 0.2, "variance_most": 0.01, "other_label": 1},
        abs=1e-6,
    )


def test_an_answer_does_not_depend_on_its_batch(tmp_path):
    adapter, base = tiny_folders(tmp_path)
    predictor = Predictor.load(adapter, str(base), dtype="float32")
    prompts = [predictor.encode(sentence) for sentence in SENTENCES]
    alone, together = in_batches(predictor, prompts, 1), in_batches(predictor, prompts, 3)
    assert alone.shape == (len(prompts), predictor.samples, len(predictor.labels))
    assert alone.std(dim=0).max() > 1e-3
    assert differences(alone, together)["p_most"] < 1e-5
