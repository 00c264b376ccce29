"""The pure parts of the benchmarks, so that a number that is wrong is not a helper's fault."""

import asyncio
import json
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import costs, forward, methods, padding, plans, report, roofline
from benchmarks.report import interleaved, write_json
from benchmarks.serving_load import looping
from benchmarks.serving_load.client import Cell, Outcome, load, numbered
from benchmarks.serving_load.inputs import texts_of_length
from benchmarks.serving_load.overhead import overhead
from benchmarks.serving_load.summary import percentiles, ratio, summarise, throughput
from dalorra import attention
from dalorra.adapter import read_adapter
from dalorra.errors import ConfigError
from dalorra.export import export_bank
from dalorra.packed_base import PackedBase
from dalorra.predictor import Predictor
from dalorra.prompts import Prompt, PromptEncoder
from tests.tiny import FORMAT, SENTENCES, save_tiny_adapter, tiny_base, tiny_base_model

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
    # The ids of the real benchmark are beyond the tiny vocabulary.
    contenders.on = partial(_within_vocabulary, contenders.on)  # type: ignore[method-assign]
    options = Namespace(tokens=[10], cue_tokens=2, samples=2, batch=[1], repeats=2, shape="default")

    results = list(forward._measure(contenders, list(plans.PLANS), options))

    assert [line["plan"] for line in results] == list(plans.PLANS)
    assert all(line.keys() >= FORWARD_KEYS for line in results)
    assert all(line["median_ms"] > 0 for line in results)
    assert results[0]["ratio_to_single"] == 1


def test_what_padding_costs_is_counted_in_rows(tmp_path: Path) -> None:
    base = tiny_base()
    save_tiny_adapter(tmp_path, base)
    predictor = Predictor.from_adapter(read_adapter(tmp_path), base)
    found = padding._measure(predictor, 40, repeats=2)
    cue = predictor.samples * len(predictor.encoder.cue_ids)
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


def _within_vocabulary(
    on: Callable[..., Any], prompts: list[Prompt], plans: list[str]
) -> dict[str, Callable[[], object]]:
    small = [
        Prompt(tuple(i % 300 for i in p.prompt_ids), tuple(i % 300 for i in p.cue_ids))
        for p in prompts
    ]
    contenders: dict[str, Callable[[], object]] = on(small, plans)
    return contenders


def test_percentiles_count_what_was_given_up() -> None:
    answered = Outcome(latencies_ms=[10.0] * 50, seconds=1)
    stuck = Outcome(latencies_ms=[10.0], waited_ms=[9000.0] * 60, seconds=1)

    assert percentiles([answered]) == {"p50_ms": 10, "p95_ms": 10, "p99_ms": 10}
    assert percentiles([answered, stuck])["p50_ms"] == 9000
    assert percentiles([Outcome()]) == {"p50_ms": None, "p95_ms": None, "p99_ms": None}


def test_throughput_is_the_median_of_the_rounds_with_its_spread() -> None:
    rounds = [Outcome([1.0] * n, seconds=2.0) for n in (2, 20, 4)]

    assert throughput(rounds) == {
        "requests_per_s": 2,
        "requests_per_s_low": 1,
        "requests_per_s_high": 10,
    }
    assert throughput([Outcome(waited_ms=[5.0])])["requests_per_s"] == 0


def test_ratio_compares_within_a_round() -> None:
    ours = [Outcome([1.0] * n, seconds=1.0) for n in (6, 60, 8)]
    theirs = [Outcome([1.0] * n, seconds=1.0) for n in (1, 10, 4)]

    assert ratio(ours, theirs) == 6
    assert ratio(ours[:1], [Outcome()]) is None


def test_a_cell_without_the_looping_server_has_no_ratio() -> None:
    line = summarise([Outcome([1.0, 2.0], [3.0], seconds=1.0)], None)

    assert (line["rounds"], line["answered"], line["given_up"]) == (1, 2, 1)
    assert line["ratio_to_fastapi"] is None


def cell(**changes: Any) -> Cell:
    values: dict[str, Any] = {
        "url": "http://127.0.0.1/predict",
        "texts": ["good", "bad"],
        "first": 40,
        "clients": 3,
        "seconds": 60.0,
        "least": 1,
        "most": 20,
        "patience": 30.0,
    }
    return Cell(**(values | changes))


async def test_load_keeps_its_clients_busy_and_never_repeats_an_input() -> None:
    inputs: list[str] = []
    busy: list[int] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        inputs.append(json.loads(request.content)["input"])
        busy.append(1)
        most_busy.append(len(busy))
        await asyncio.sleep(0)
        busy.pop()
        return httpx.Response(200, json={})

    most_busy: list[int] = []
    outcome = await load(cell(), httpx.MockTransport(answer))

    assert len(outcome.latencies_ms) == 20
    assert not outcome.waited_ms
    assert len(set(inputs)) == 20
    assert inputs[0] == numbered("good", 40)
    assert max(most_busy) == 3
    assert outcome.requests_per_s == 20 / outcome.seconds


async def test_load_gives_up_on_what_is_too_slow() -> None:
    untils: list[float] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        untils.append(json.loads(request.content)["until"])
        await asyncio.sleep(60 if len(untils) > 1 else 0)
        return httpx.Response(200, json={})

    outcome = await load(
        cell(patience=0.2, seconds=0.1, says_until=True), httpx.MockTransport(answer)
    )

    assert len(outcome.latencies_ms) == 1
    assert len(outcome.waited_ms) == 3
    assert min(outcome.waited_ms) > 100
    assert len(set(untils)) == 1


async def test_load_refuses_to_count_errors() -> None:
    with pytest.raises(httpx.HTTPStatusError):
        await load(cell(), httpx.MockTransport(lambda _: httpx.Response(503)))


def test_long_texts_have_the_length_exactly() -> None:
    encoder = PromptEncoder(tiny_base().tokenizer, FORMAT, max_tokens=120)

    bodies = texts_of_length(encoder, SENTENCES, 101, 3)

    # The tiny tokenizer makes two tokens of the filler, so one more is possible.
    assert {encoder.encode(numbered(body, 7)).tokens for body in bodies} <= {101, 102}
    assert len(set(bodies)) == 3
    with pytest.raises(ConfigError, match="120 tokens at most"):
        texts_of_length(encoder, SENTENCES, 121, 1)


@pytest.fixture
def looped(tmp_path: Path) -> tuple[looping.LoopedLora, Predictor]:
    base_folder = tiny_base_model(tmp_path / "base")
    adapter = save_tiny_adapter(tmp_path / "adapter", tiny_base())
    options = Namespace(
        adapter=adapter,
        members=export_bank(adapter, tmp_path / "members"),
        base_model=str(base_folder),
        device="cpu",
        dtype="float32",
    )
    predictor = Predictor.load(adapter, str(base_folder), device="cpu", dtype="float32")
    return looping.LoopedLora(options), predictor


def test_the_loop_answers_like_ours(looped: tuple[looping.LoopedLora, Predictor]) -> None:
    loop, predictor = looped
    texts = list(SENTENCES)

    answers = loop.answer(texts, until=float("inf"))

    ours = predictor.predict([predictor.encode(text) for text in texts])
    for answer, expected in zip(answers, ours, strict=True):
        assert answer["label"] == expected.label
        assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)
        assert answer["variance"] == pytest.approx(expected.variance, abs=1e-4)
    assert max(answer["variance"] for answer in answers) > 1e-3


def test_the_loop_skips_what_nobody_waits_for(
    looped: tuple[looping.LoopedLora, Predictor],
) -> None:
    assert looped[0].answer(["good", "bad"], until=0) == [looping.EXPIRED] * 2


def test_overhead_is_taken_pair_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([5.0, 7.0] * 2 + [10.0, 13.0, 20.0, 24.0, 30.0, 32.0])
    monkeypatch.setattr(
        "benchmarks.serving_load.overhead._milliseconds", lambda run: run() or next(times)
    )
    monkeypatch.setattr(
        "benchmarks.serving_load.overhead._ask", lambda *_: {"tokenize": 1.0, "inference": 8.0}
    )
    predictor: Any = SimpleNamespace(encode=lambda text: text, predict=lambda _: None)

    added = overhead(predictor, "http://127.0.0.1/predict", ["good"], repeats=3)

    assert added["overhead_ms"] == 3
    assert (added["bare_ms"], added["served_ms"]) == (20, 24)
    assert (added["inference_ms"], added["tokenize_ms"], added["rest_ms"]) == (8, 1, 15)


def test_every_method_is_timed_as_it_answers_once_it_is_trained() -> None:
    base, times = tiny_base(layers=3).model, {"median_ms": 2.0, "ratio_to_single": 1.5}
    packed, options = PackedBase(base), Namespace(rank=4, samples=3)
    prompts, labels = [Prompt(tuple(range(9)), (1, 2, 3))] * 2, torch.tensor([0, 1])
    lines: list[dict[str, Any]] = []
    for scope in ("answer_tokens", "all_tokens"):
        contenders = {
            kind.key(): methods.Contender(kind(), base, packed, prompts, labels, scope, options)
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
