"""All plans for ragged prompts answer the same, so their times can be compared."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.ragged import plans
from dalorra.forward.llama.network import PackedLlama
from tests.tiny import SENTENCES, predictor_on, save_tiny_adapter, tiny_base


def test_every_plan_answers_what_each_prompt_alone_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base()
    predictor = predictor_on(save_tiny_adapter(tmp_path, base), base)
    prompts = [predictor.encode(text) for text in SENTENCES]

    forwards: list[int] = []
    run = PackedLlama.answers
    monkeypatch.setattr(
        PackedLlama,
        "answers",
        lambda network, group, samples: forwards.append(len(group)) or run(network, group, samples),
    )
    found, split = {}, {}
    free = replace(predictor.batching, price=0)
    for name, plan in plans(predictor, prompts, free).items():
        forwards.clear()
        found[name] = plan()
        split[name] = list(forwards)

    assert split["in one"] == [len(prompts)]
    assert len(split["joined"]) == len({prompt.tokens for prompt in prompts})
    assert split["alone"] == [1] * len(prompts)
    for other in found.values():
        for one, two in zip(found["alone"], other, strict=True):
            assert one.probability == pytest.approx(two.probability, abs=1e-5)
            assert one.variance == pytest.approx(two.variance, abs=1e-5)
