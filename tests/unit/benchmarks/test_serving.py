"""The parts of the service's benchmark: its load, its summary, its overhead, the looping server."""

import asyncio
import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from benchmarks.serving_load import looping
from benchmarks.serving_load.client import Cell, Outcome, load, numbered
from benchmarks.serving_load.inputs import texts_of_length
from benchmarks.serving_load.overhead import overhead
from benchmarks.serving_load.summary import percentiles, ratio, summarise, throughput
from dalorra.adapter.export import export_bank
from dalorra.errors import ConfigError
from dalorra.predictor import Predictor
from dalorra.prompts import PromptTokenizer
from tests.tiny import FORMAT, SENTENCES, save_tiny_adapter, tiny_base, tiny_base_model


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
    tokenizer = PromptTokenizer(tiny_base().tokenizer, FORMAT, max_tokens=120)

    bodies = texts_of_length(tokenizer, SENTENCES, 101, 3)

    # The tiny tokenizer makes two tokens of the filler, so one more is possible.
    assert {tokenizer.encode(numbered(body, 7)).tokens for body in bodies} <= {101, 102}
    assert len(set(bodies)) == 3
    with pytest.raises(ConfigError, match="120 tokens at most"):
        texts_of_length(tokenizer, SENTENCES, 121, 1)


@pytest.fixture
def looped(tmp_path: Path) -> tuple[looping.LoopedLora, Predictor]:
    base_folder = tiny_base_model(tmp_path / "base")
    adapter = save_tiny_adapter(tmp_path / "adapter", tiny_base())
    options = Namespace(
        adapter=adapter,
        loras=export_bank(adapter, tmp_path / "loras"),
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
        "benchmarks.serving_load.overhead.milliseconds", lambda run: run() or next(times)
    )
    monkeypatch.setattr(
        "benchmarks.serving_load.overhead.ask", lambda *_: {"tokenize": 1.0, "inference": 8.0}
    )
    predictor: Any = SimpleNamespace(encode=lambda text: text, predict=lambda _: None)

    added = overhead(predictor, "http://127.0.0.1/predict", ["good"], repeats=3)

    assert added["overhead_ms"] == 3
    assert (added["bare_ms"], added["served_ms"]) == (20, 24)
    assert (added["inference_ms"], added["tokenize_ms"], added["rest_ms"]) == (8, 1, 15)
