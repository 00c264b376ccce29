"""Typed questions through the HTTP service to real adapters on a tiny base, and back."""

from pathlib import Path

import pytest

from dalorra.adapter.registered import write_registered
from dalorra.blocks import BLOCK
from dalorra.posteriors.bank import BankSpec
from dalorra.question_prompts import QuestionFormat
from dalorra.questions import Asked, Option, Question
from dalorra.shared_base import SharedBase
from tests.questions import ASK_POSITIVE, POSITIVE
from tests.serving import serving
from tests.tiny import save_tiny_adapter, tiny_base

STATE = "I laughed :)"
NOUL = {"type": "noul", "instructions": "Is it late?"}
TONE = {
    "type": "choice",
    "instructions": "Tone?",
    "criteria": {"odd": None, "good": "fun", "bad": None},
}
STARS = {"type": "score", "instructions": "How many?", "criteria": ["one", "two", "three"]}
WANTED = {
    "late": Question.noul("Is it late?"),
    "tone": Question("choice", "Tone?", (Option("odd"), Option("good", "fun"), Option("bad"))),
    "stars": Question("score", "How many?", tuple(map(Option, ("one", "two", "three")))),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with labels of its own, registered for a question, and one for questions."""
    folder, base = tmp_path_factory.mktemp("adapters"), tiny_base(layers=3)
    save_tiny_adapter(folder / "labels", base)
    write_registered(folder / "labels", [POSITIVE])
    bank = BankSpec(samples=4)
    save_tiny_adapter(folder / "ask", base, prompt=QuestionFormat(), bank=bank, max_tokens=250)
    return folder


async def test_answers_are_those_of_the_adapters(folder: Path):
    shared = SharedBase(tiny_base(layers=3), prefix_cache_bytes=1 << 20)
    labels, ask = (shared.bind(shared.read(folder / name)) for name in ("labels", "ask"))
    adapters = {name: folder / name for name in ("labels", "ask")}
    questions = {"late": NOUL, "positive": ASK_POSITIVE, "tone": TONE, "stars": STARS}
    async with serving(base=shared, adapters=adapters) as server:
        response = await server.client.post(
            "/v1/systemone", json={"state": STATE, "questions": questions}
        )
        long = await server.client.post(
            "/v1/systemone", json={"state": "so " * 400, "questions": questions}
        )
    assert response.status_code == 200, response.text
    answers = response.json()["answers"]
    [predicted] = labels.predict([labels.encode(STATE)])
    assert answers["positive"]["x_adapter"] == "labels"
    assert answers["positive"]["noul"] == pytest.approx(predicted.probabilities["positive"])
    for name, question in WANTED.items():
        [alone] = ask.predict([ask.encode(Asked(STATE, question))])
        found = answers[name]
        assert found["x_adapter"] == "ask"
        assert found["x_variance"] == pytest.approx(alone.variance, abs=1e-5)
        p = [alone.probabilities[option.name] for option in question.options]
        got = [found["noul"]] if name == "late" else list(found["probabilities"].values())
        assert got == pytest.approx(p[: len(got)], abs=1e-5)
    assert long.status_code == 413
    assert long.json()["detail"]["error_type"] == "input_too_long"


async def test_a_state_that_was_read_before_is_told_to_who_sent_it(folder: Path):
    shared = SharedBase(tiny_base(layers=3), prefix_cache_bytes=1 << 20)
    ask = shared.bind(shared.read(folder / "ask"))
    state, question = STATE * 5, {"type": "predicate", "instructions": "Is it late?"}
    tokens = ask.encode(Asked(state, WANTED["late"])).shared // BLOCK * BLOCK
    settings = {"api_keys": "one,two", "batch_rows": 1}  # a question a forward
    async with serving(base=shared, adapters={"ask": folder / "ask"}, **settings) as server:

        async def cached(key: str, text: str) -> int:
            body = {"model": "ask", "input": text, "questions": [question] * 2}
            headers = {"Authorization": f"Bearer {key}"}
            response = await server.client.post("/v1/decisions", json=body, headers=headers)
            assert response.status_code == 200, response.text
            found: int = response.json()["usage"]["input_tokens_details"]["cached_tokens"]
            return found

        assert await cached("one", state) == 0
        assert await cached("one", state) == tokens > 0
        assert await cached("two", state) == 0, "what others sent is found, and not told"
        assert await cached("two", state) == tokens
        assert await cached("one", f"{state} And more.") == tokens
