"""The temperature benchmark on answers that were made up."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.temperature import compare, read_answers
from dalorra.decision.predictive import summarise
from training.experiments.predictions import write_predictions
from training.tasks import Example

LABELS = ("no", "yes")


def write(path: Path, probabilities: torch.Tensor, labels: tuple[str, ...] = LABELS) -> None:
    """Answers `[n, M, K]` to as many examples, all of them "yes"."""
    examples = [Example({"text": str(i)}, "yes") for i in range(len(probabilities))]
    write_predictions(path, {"test": (examples, summarise(probabilities, labels))})


def test_the_true_label_is_first_whatever_was_predicted(tmp_path):
    yes = torch.tensor([[0.9, 0.8], [0.2, 0.4]])
    write(tmp_path / "p.parquet", torch.stack([1 - yes, yes], dim=-1))
    found = read_answers(tmp_path / "p.parquet")
    torch.testing.assert_close(found.probabilities[:, :, 0, 0], yes.double())
    torch.testing.assert_close(found.probabilities.sum(-1), torch.ones(2, 2, 1).double())


def test_three_labels_are_refused(tmp_path):
    write(tmp_path / "p.parquet", torch.full((2, 2, 3), 1 / 3), ("no", "yes", "maybe"))
    with pytest.raises(ValueError, match="two labels"):
        read_answers(tmp_path / "p.parquet")


def test_platts_targets_keep_votes_out_that_the_labels_ask_for(tmp_path):
    # Of 400 examples 12 have no sample that is right, and many a pilot of 20 has none of these.
    generator = torch.Generator().manual_seed(1)
    margins = 3.0 + torch.randn((400, 10), generator=generator)
    margins[:12] = -4.0
    yes = torch.sigmoid(margins)
    write(tmp_path / "p.parquet", torch.stack([1 - yes, yes], dim=-1))
    found = compare([read_answers(tmp_path / "p.parquet")], pilot=20, draws=20)
    assert found["temperature_labels_least"] < 0.1 < found["temperature_platt_least"]
    assert found["nll_platt_worst"] < found["nll_labels_worst"]
    assert np.isfinite(found["nll_none"])
