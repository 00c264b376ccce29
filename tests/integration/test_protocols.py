"""Clients and suites of others, unmodified, against a running server: they say what the wire is."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.questions import CHOICE, NOUL, QUESTIONS, SCORE, STATE
from tests.server_process import KEY, ServerProcess, start

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SHOULDS = 15
DECISIONS_MODEL = "gpt-6-luna"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with start("fake", predictor={"questions": True}) as process:
        yield process.until_ready()


@pytest.fixture(scope="module")
def without_keys() -> Iterator[ServerProcess]:
    with start("fake", predictor={"questions": True}, api_keys=[]) as process:
        yield process.until_ready()


@pytest.fixture(scope="module")
def bundled() -> Iterator[ServerProcess]:
    """What `make serve` starts: the bundled adapters on the default base model."""
    with start("model") as process:
        yield process.until_ready()


@pytest.mark.parametrize(
    ("served", "keyed"), [("without_keys", False), ("server", True), ("bundled", True)]
)
def test_jevcompat(request: pytest.FixtureRequest, tmp_path: Path, served: str, keyed: bool):
    """Every MUST, and every SHOULD that can be tested: those about keys need some."""
    pytest.importorskip("jevcompat")
    process = request.getfixturevalue(served)
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "jevcompat.cli", "test", process.url, "--json", str(report)]
    done = subprocess.run(
        [*command, *(["--key-env", "A_KEY"] if keyed else [])],
        check=False, env={**os.environ, "A_KEY": KEY}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    summary = json.loads(report.read_text())["summary"]
    assert summary["verdict"] == "conformant"
    assert summary["MUST"]["failed"] == 0
    assert summary["SHOULD"]["failed"] == 0
    assert summary["SHOULD"]["passed"] == (SHOULDS if keyed else SHOULDS - 2)


def test_typesafe_sdk(server: ServerProcess):
    sdk = pytest.importorskip("typesafe_sdk")
    with sdk.TypeSafeClient(api_key=KEY, base_url=server.url) as client:
        response = client.system_one(state=STATE, questions=QUESTIONS)
        names = [one.name for one in client.models.list().models]
        with pytest.raises(sdk.TypeSafeUnprocessableEntityError, match="at least 2 items"):
            client.system_one(state=STATE, questions={"q": {**CHOICE, "criteria": {"a": None}}})
    assert 0 <= response.nouls["refund"].noul <= 1
    assert list(response.choices["team"].probabilities) == list(CHOICE["criteria"])
    assert response.scores["anger"].legend == dict(enumerate(SCORE["criteria"]))
    assert response.usage.input_tokens > 0
    assert names[0] == "jev-latest"
    with (
        sdk.TypeSafeClient(api_key="wrong", base_url=server.url) as client,
        pytest.raises(sdk.TypeSafeAuthenticationError),
    ):
        client.system_one(state=STATE, questions={"q": NOUL})


PREDICATE = {"type": "predicate", "name": "refund", "instructions": "Refund?"}
LEVELS = [{"label": "calm"}, {"label": "furious", "description": "shouts"}]


def test_openai(server: ServerProcess):
    openai = pytest.importorskip("openai")
    choices = [{"value": "yes", "description": "so"}, {"value": False}]
    questions: list[Any] = [
        PREDICATE,
        {"type": "choice", "instructions": "Which?", "choices": choices},
        {"type": "score", "name": "anger", "instructions": "How?", "levels": LEVELS},
    ]
    conversation: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": STATE}]},
        {"type": "function_call", "call_id": "1", "name": "pay", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "paid"},
    ]
    with openai.OpenAI(api_key=KEY, base_url=f"{server.url}/v1", max_retries=0) as client:
        for asked in (STATE, conversation):
            decision = client.decisions.create(
                model=DECISIONS_MODEL, input=asked, questions=questions
            )
            predicate, choice, score = decision.answers
            assert (predicate.type, predicate.name) == ("predicate", "refund")
            assert 0 <= predicate.probability <= 1
            assert choice.choice in ("yes", False)
            assert [one.value for one in choice.probabilities] == ["yes", False]
            assert [one.label for one in score.probabilities] == ["calm", "furious"]
            assert decision.usage.total_tokens == decision.usage.input_tokens
        assert DECISIONS_MODEL in [one.id for one in client.models.list()]
        with pytest.raises(openai.BadRequestError) as caught:
            client.decisions.create(model=DECISIONS_MODEL, input=STATE, questions=[])
        assert (caught.value.param, caught.value.code) == ("questions", "invalid_input")
        with pytest.raises(openai.NotFoundError):
            client.decisions.create(model="gpt-4", input=STATE, questions=questions)
    with (
        openai.OpenAI(api_key="wrong", base_url=f"{server.url}/v1", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.decisions.create(model=DECISIONS_MODEL, input=STATE, questions=questions)


async def test_langchain_openai(server: ServerProcess):
    decisions = pytest.importorskip("langchain_openai.decisions")
    model = decisions.OpenAIDecisions(
        model=DECISIONS_MODEL, api_key=KEY, base_url=f"{server.url}/v1"
    )
    questions = {
        "urgent": decisions.Predicate(instructions="Urgent?"),
        "team": decisions.Choice(instructions="Team?", choices={"a": "first", "b": None}),
        "anger": decisions.Score(instructions="How?", levels=["calm", "furious"]),
    }
    for response in (
        model.invoke({"input": STATE, "questions": questions}),
        await model.ainvoke({"input": {"ticket": STATE}, "questions": questions}),
    ):
        assert 0 <= response.predicates["urgent"].probability <= 1
        assert set(response.choices["team"].probabilities) == {"a", "b"}
        assert response.scores["anger"].legend == {0: "calm", 1: "furious"}
        assert response.request_id


def test_langchain_openai_reads_refusals():
    decisions = pytest.importorskip("langchain_openai.decisions")
    options = {"predictor": {"questions": True}, "refuse_unaccepted": "true"}
    with start("fake", **options) as process:
        process.until_ready()
        model = decisions.OpenAIDecisions(
            model=DECISIONS_MODEL, api_key=KEY, base_url=f"{process.url}/v1"
        )
        questions = {str(n): decisions.Predicate(instructions=f"Is it {n}?") for n in range(40)}
        response = model.invoke({"input": STATE, "questions": questions})
    assert response.refusals
    assert response.predicates
    assert len(response.answers) == 40


def test_jevbench_can_ask(server: ServerProcess):
    jevbench = pytest.importorskip("jevbench")
    model = jevbench.systemone(f"{server.url}/v1/systemone", model="jev-latest", api_key=KEY)
    assert sum(jevbench.check(model)["questions"].values()) >= 3
