"""All plans for ragged prompts answer the same, so their times can be compared."""

from pathlib import Path

import pytest

from benchmarks.ragged import _plans
from dalorra.adapter.directory import read_adapter
from dalorra.forward.batches import ForwardCost
from dalorra.forward.llama.base import ArrangedLlama
from dalorra.predictor import Predictor
from tests.tiny import SENTENCES, save_tiny_adapter, tiny_base


def test_every_plan_answers_what_padding_answers(tmp_path: Path) -> None:
    base = tiny_base()
    adapter = read_adapter(save_tiny_adapter(tmp_path, base))
    packed = ArrangedLlama(base.model)
    predictor = Predictor.from_adapter(adapter, base, packed=packed)
    prompts = [predictor.encode(text) for text in SENTENCES]

    forwards: list[int] = []
    network, run = predictor._network, predictor._network.answers
    network.answers = lambda group, *rest: forwards.append(len(group)) or run(group, *rest)
    found, split, joined = {}, {}, []
    for name, plan in _plans(predictor, packed, prompts, ForwardCost(0, 1.0)).items():
        forwards.clear()
        found[name] = plan()
        split[name] = list(forwards)
        if packed.joins_prompts:
            joined.append(name)

    alone = len(prompts)
    assert joined == ["joined"]
    assert split["padded"] == split["joined"] == [alone]
    assert split["two buckets"] == [alone // 2, alone - alone // 2]
    assert len(split["grouped"]) == len({prompt.tokens for prompt in prompts})
    assert split["alone"] == [1] * alone
    for other in found.values():
        for one, two in zip(found["padded"], other, strict=True):
            assert one.probability == pytest.approx(two.probability, abs=1e-5)
            assert one.variance == pytest.approx(two.variance, abs=1e-5)
