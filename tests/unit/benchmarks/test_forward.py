"""The pure parts of the benchmarks, so that a number that is wrong is not a helper's fault."""

import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import costs, forward, methods, padding, plans, report, roofline
from benchmarks.report import interleaved, write_json
from dalorra.forward.llama import attention
from dalorra.forward.llama.base import ArrangedLlama
from dalorra.prompts import Prompt
from tests.tiny import predictor_on, save_tiny_adapter, tiny_base

FORWARD_KEYS = {"plan", "tokens", "cue_tokens", "samples", "batch", "median_ms", "ratio_to_single"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(report, "perf_counter", lambda: now.seconds)
    return now


def test_contenders_take_turns_and_the_first_is_the_unit(clock: SimpleNamespace) -> None:
    turns: list[str] = []

    def contender(name: str, seconds: float) -> Any:
        def run() -> None:
            turns.append(name)
            # The machine gets slower and slower: the ratio must not see it.
            clock.seconds += seconds * (1 + len(turns) // 2)

        return run

    summary = interleaved({"a": contender("a", 1), "b": contender("b", 3)}, repeats=4, warm_up=1)

    assert turns == ["a", "b"] * 5
    assert summary["a"]["ratio_to_single"] == 1
    assert summary["b"]["ratio_to_single"] == pytest.approx(3.875)
    for numbers in summary.values():
        assert numbers["quartile_low_ms"] <= numbers["median_ms"] <= numbers["quartile_high_ms"]
    assert summary["a"]["median_ms"] == pytest.approx(3500)


def test_json_is_a_list_with_the_hardware_in_each_line(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "results.json", [{"plan": "a", "median_ms": 1.5}])

    (line,) = json.loads((tmp_path / "new" / "results.json").read_text())

    assert line["plan"] == "a"
    assert line["median_ms"] == 1.5
    assert line["hardware"]["processor"]
    assert line["versions"]["torch"] == torch.__version__


def test_forward_measures_every_plan() -> None:
    contenders = plans.Contenders(tiny_base().model, samples=2)
    options = Namespace(tokens=[10], cue_tokens=2, samples=2, batch=[1], repeats=2, shape="default")

    results = list(forward.measure(contenders, list(plans.PLANS), options))

    assert [line["plan"] for line in results] == list(plans.PLANS)
    assert all(line.keys() >= FORWARD_KEYS for line in results)
    assert all(line["median_ms"] > 0 for line in results)
    assert results[0]["ratio_to_single"] == 1


def test_what_padding_costs_is_counted_in_rows(tmp_path: Path) -> None:
    base = tiny_base()
    predictor = predictor_on(save_tiny_adapter(tmp_path, base), base)
    found = padding.measure(predictor, 40, repeats=2)
    cue = predictor.samples * len(predictor.tokenizer.cue_ids)
    short = [10 + i for i in range(found["prompts"] - 1)]
    assert found["rows"] == 40 + sum(short) + cue * found["prompts"]
    assert found["padding"] == sum(40 - length for length in short)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("plan", plans.PLANS)
def test_the_work_of_a_plan_is_what_it_runs(
    plan: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "has_amx", lambda: False)  # a fused kernel is not counted
    base = tiny_base(layers=3).model
    contenders = plans.Contenders(base, samples=4)
    prompts = [Prompt(tuple(range(9)), (1, 2, 3)) for _ in range(batch)]
    run = contenders.on(prompts, [plan])[plan]
    with FlopCounterMode(display=False) as counter:
        run()

    shape = roofline.Shape.of(base.config)
    counted = roofline.work(plan, shape, batch=batch, tokens=12, cue_tokens=3, samples=4)
    by_operation = counter.get_flop_counts()["Global"]
    total = sum(by_operation.values())
    if plan not in ("answer_tokens", "one sample", "all_tokens"):
        assert counted.products == total  # the fused kernel of attention is not counted
        return
    products = sum(by_operation.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    # A slice of a batch is multiplied as a batch of matrices, like the scores of attention, which
    # are computed for pairs, too, that do not see each other.
    assert products <= counted.products < 1.3 * products
    assert counted.products == products or batch > 1
    assert 0 < counted.attention <= total - counted.products


def test_the_work_of_a_recorded_forward_is_that_of_the_same_without_padding() -> None:
    shape = roofline.SHAPES["default"]
    sizes = {"batch": 3, "tokens": 70, "cue_tokens": 4, "samples": 10}
    for recorded, plan in (
        ("recorded", "answer_tokens"),
        ("one sample recorded", "one sample"),
        ("lora recorded", "lora"),
    ):
        assert roofline.work(recorded, shape, **sizes) == roofline.work(plan, shape, **sizes)


def test_the_share_of_the_roofline_is_of_the_slower_of_computing_and_reading() -> None:
    line = {"plan": "lora", "batch": 1, "tokens": 40, "cue_tokens": 4, "samples": 10}
    shape = roofline.SHAPES["default"]
    lora = roofline.work("lora", shape, batch=1, tokens=40, cue_tokens=4, samples=10)
    fast = roofline.Machine(matmul_tflops=1e6, copy_gb_per_s=10.0)
    slow = roofline.Machine(matmul_tflops=1.0, copy_gb_per_s=1e6)

    [reading] = roofline.with_roofline([{**line, "median_ms": 100.0}], shape, fast)
    [computing] = roofline.with_roofline([{**line, "median_ms": 100.0}], shape, slow)

    assert reading["roofline_share"] == pytest.approx(2 * lora.weights / 1e10 / 0.1)
    assert computing["roofline_share"] == pytest.approx(lora.flop / 1e12 / 0.1)


def test_a_figure_is_drawn_from_the_json_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = {"tokens": 40, "batch": 8, "plan": "lora", "ratio_to_single": 1.0, "hardware": {"of": 1}}
    write_json(tmp_path / "forward.json", [line])
    assert report.read_json(tmp_path / "forward.json")[0]["hardware"] == {"of": 1}
    arguments = ["forward", "--render", "--json", str(tmp_path / "forward.json")]
    monkeypatch.setattr("sys.argv", arguments)
    forward.main()
    assert (tmp_path / "forward.png").exists()


def test_every_method_is_timed_as_it_answers_once_it_is_trained() -> None:
    base, times = tiny_base(layers=3).model, {"median_ms": 2.0, "ratio_to_single": 1.5}
    arranged, options = ArrangedLlama(base), Namespace(rank=4, samples=3)
    prompts, labels = [Prompt(tuple(range(9)), (1, 2, 3))] * 2, torch.tensor([0, 1])
    lines: list[dict[str, Any]] = []
    for scope in ("answer_tokens", "all_tokens"):
        contenders = {
            kind.key(): methods.Contender(kind(), base, arranged, prompts, labels, scope, options)
            for kind in methods.kinds()
        }
        for name, contender in contenders.items():
            contender.step()
            assert contender.answer() is not None
            cost = contender.cost(contenders["mle"], times, times)
            lines.append({"method": name, "scope": scope, "repeats": 5, **cost})
    by = {line["method"]: line for line in lines}
    assert lines[0]["method"] == "mle"
    assert by["mle"]["extra"] == 0
    assert by["dalorra"]["extra"] == 7 * 4
    assert by["laplace"]["extra"] > 0
    # A TFB that is not fitted would answer by its mean, in one pass.
    assert by["tfb"]["samples"] == by["dalorra"]["samples"] == 3

    machine = {"processor": "a processor", "threads": 2}
    text = costs.section([{**line, "hardware": machine} for line in lines])
    assert f"| dalorra | {by['dalorra']['trainable']:,} | 28 | 1.50 |" in text
    assert "M = 3 passes" in text
