"""Both plans for ragged prompts answer the same, so their times can be compared."""

from pathlib import Path

import pytest

from benchmarks.ragged import PLANS, _plans
from dalorra.predictor import Predictor
from tests.tiny import SENTENCES, save_tiny_adapter, tiny_base, tiny_base_model


def test_buckets_answer_what_padding_answers(tmp_path: Path) -> None:
    base = str(tiny_base_model(tmp_path / "base"))
    adapter = save_tiny_adapter(tmp_path / "adapter", tiny_base())
    predictor = Predictor.load(adapter, base, device="cpu", dtype="float32")
    prompts = [predictor.encode(text) for text in SENTENCES]

    plans = _plans(predictor, prompts)
    padded = plans[PLANS[0]]()
    halves = plans[PLANS[1]]()

    assert [len(half) for half in halves] == [2, 2]
    for one, other in zip(padded, [p for half in halves for p in half], strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-5)
        assert one.variance == pytest.approx(other.variance, abs=1e-5)
