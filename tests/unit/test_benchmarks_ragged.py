"""All plans for ragged prompts answer the same, so their times can be compared."""

from pathlib import Path

import pytest

from benchmarks.ragged import PLANS, _plans
from dalorra.predictor import Predictor
from tests.tiny import SENTENCES, save_tiny_adapter, tiny_base, tiny_base_model


def test_every_plan_answers_what_padding_answers(tmp_path: Path) -> None:
    base = str(tiny_base_model(tmp_path / "base"))
    adapter = save_tiny_adapter(tmp_path / "adapter", tiny_base())
    predictor = Predictor.load(adapter, base, device="cpu", dtype="float32")
    prompts = [predictor.encode(text) for text in SENTENCES]

    plans = _plans(predictor, prompts, price=0)
    forwards: list[int] = []
    network, run = predictor._network, predictor._network.answers
    network.answers = lambda group, *rest: forwards.append(len(group)) or run(group, *rest)
    found = {}
    for name in PLANS:
        forwards.clear()
        found[name] = plans[name](), list(forwards)

    padded, alone = found["padded"][0], len(prompts)
    assert found["padded"][1] == [alone]
    assert found["two buckets"][1] == [alone // 2, alone - alone // 2]
    assert len(found["grouped"][1]) == len({prompt.tokens for prompt in prompts})
    assert found["alone"][1] == [1] * alone
    for other, _ in found.values():
        for one, two in zip(padded, other, strict=True):
            assert one.probability == pytest.approx(two.probability, abs=1e-5)
            assert one.variance == pytest.approx(two.variance, abs=1e-5)
