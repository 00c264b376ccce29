"""Several adapters: asked by name, loaded and unloaded while the server answers."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from dalorra.decision.policy import Policy
from dalorra.errors import ConfigError
from dalorra.questions import Question
from service.settings import load_settings
from tests.fakes import POLICY, FakeBase, FakePredictor, FakeQuestions, expected_prediction
from tests.serving import RunningServer, serving

ADMIN = {"Authorization": "Bearer the-key-of-the-administrator"}
CLIENT = {"Authorization": "Bearer the-key-of-a-client"}
TWO = {"sentiment": "/a/sentiment", "topic": "/a/topic"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of adapters, and beside it one that is none of the server's business."""
    for name in ("roots/topic-1", "roots/topic-2", "roots/other", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "dalorra.json").write_text("{}")
    return tmp_path / "roots"


@pytest.fixture
def managed(root: Path) -> Any:
    """`async with managed(base)`: a server whose adapters can be changed."""

    def start(base: FakeBase, **settings: Any) -> Any:
        settings = {"admin_keys": "the-key-of-the-administrator", "adapters": TWO, **settings}
        return serving(base=base, adapter_roots=(root,), **settings)

    return start


async def load(server: RunningServer, name: str, path: Any, **options: Any) -> httpx.Response:
    body = {"path": str(path)}
    return await server.client.put(f"/adapters/{name}", json=body, **{"headers": ADMIN, **options})


async def names(server: RunningServer) -> list[str]:
    body = (await server.client.get("/adapters")).json()
    assert body["default"] == body["adapters"][0]["name"]
    return [one["name"] for one in body["adapters"]]


async def test_a_request_is_answered_by_the_adapter_it_names():
    base = FakeBase(topic=FakePredictor(["title", "body"]))
    async with serving(base=base, adapters=TWO) as server:
        unnamed = await server.predict("a")
        named = await server.predict({"title": "t", "body": "b"}, adapter="topic")
        batch = await server.predict_batch(["a", "b"], adapter="sentiment")
        misfit = await server.predict("a", adapter="topic")
        unknown = await server.predict("a", adapter="nobody")

    sentiment, topic = base.bound
    assert unnamed.json()["adapter"] == "sentiment"
    assert named.json()["adapter"] == "topic"
    expected = expected_prediction(topic.encode({"title": "t", "body": "b"}))
    assert named.json()["probability"] == expected.probability
    assert [one["adapter"] for one in batch] == ["sentiment"] * 2
    assert "('title', 'body')" in misfit.json()["error"], "each adapter has its own fields"
    assert (unknown.status_code, unknown.json()["error_type"]) == (404, "unknown_adapter")
    assert "'sentiment', 'topic'" in unknown.json()["error"]
    assert len(topic.batches) == 1
    assert sum(map(len, sentiment.batches)) == 3


async def test_equal_inputs_of_two_adapters_are_two_inputs():
    base = FakeBase()
    async with serving(base=base, adapters=TWO) as server:
        await asyncio.gather(*(server.predict("same", adapter=name) for name in TWO))
        assert (await server.metrics())["dalorra_coalesced_inputs_total"] == 0
    assert [len(one.batches) for one in base.bound] == [1, 1]


async def test_every_surface_knows_all_adapters():
    base = FakeBase(topic=FakePredictor(["title", "body"]))
    async with serving(base=base, adapters=TWO) as server:
        get = server.client.get
        listed = (await get("/adapters")).json()
        infos = [(await get(f"/info{query}")).json() for query in ("", "?adapter=topic")]
        tools = [(await get(f"/tool.json{query}")).json() for query in ("", "?adapter=topic")]
        missing = [await get(f"{path}?adapter=x") for path in ("/info", "/tool.json")]
        models = [(await get(f"/v2/models/{name}")).json() for name in TWO]

    assert listed["default"] == "sentiment"
    assert [one["name"] for one in listed["adapters"]] == ["sentiment", "topic"]
    assert listed["adapters"][1] == {
        "name": "topic", "digest": "digest-of-topic", "method": "dalorra",
        "scope": "answer_tokens", "samples": 10, "labels": ["negative", "positive"],
        "fields": ["title", "body"], "max_tokens": 300, "bytes": 1_000,
        "policy_digest": POLICY.digest, "hand_made_policies": 0,
    }  # fmt: skip
    assert [info["adapter"] for info in infos] == ["sentiment", "topic"]
    assert [info["adapters"] for info in infos] == [["sentiment", "topic"]] * 2
    assert infos[1]["fields"] == ["title", "body"]
    functions = [tool["function"] for tool in tools]
    assert functions[0]["name"] == "predict_with_uncertainty"
    assert functions[1]["name"] == "predict_with_uncertainty_topic"
    assert functions[1]["parameters"]["required"] == ["title", "body"]
    assert {one.json()["error_type"] for one in missing} == {"unknown_adapter"}
    assert [[one["name"] for one in model["inputs"]] for model in models] == [
        ["sentence"],
        ["title", "body"],
    ]


async def test_an_adapter_is_loaded_replaced_and_unloaded(managed: Any, root: Path):
    base = FakeBase()
    async with managed(base) as server:
        with capture_logs() as logs:
            loaded = await load(server, "new", root / "topic-1")
            assert await names(server) == ["sentiment", "topic", "new"]
            replaced = await load(server, "topic", "topic-2")  # relative to a root
            unloaded = await server.client.delete("/adapters/new", headers=ADMIN)
        answer = await server.predict("a", adapter="topic")
        gone = await server.predict("a", adapter="new")

    assert (loaded.status_code, loaded.json()["digest"]) == (200, "digest-of-topic-1")
    assert replaced.json()["digest"] == "digest-of-topic-2"
    assert [one["name"] for one in unloaded.json()["adapters"]] == ["sentiment", "topic"]
    assert base.bound[-1].batches, "the new one answers under the old one's name"
    assert answer.json()["adapter"] == "topic"
    assert gone.status_code == 404
    audit = [line for line in logs if line["event"].startswith("adapter_")]
    assert [line["event"] for line in audit] == ["adapter_loaded"] * 2 + ["adapter_unloaded"]
    assert audit[1]["replaced_digest"] == "digest-of-topic"
    assert audit[1]["adapter_digest"] == "digest-of-topic-2"
    assert all(line["administrator"] for line in audit)


async def test_a_load_says_what_it_changes_about_the_policies(managed: Any, root: Path):
    looser = POLICY.model_copy(update={"min_probability": 0.5, "digest": None})
    base = FakeBase(**{name: FakePredictor(policy=looser) for name in ("other", "topic-2")})
    async with managed(base) as server:
        with capture_logs() as logs:
            new, topic = [
                (await load(server, name, root / folder)).json()
                for name, folder in (("new", "other"), ("topic", "topic-2"))
            ]
        listed = (await server.client.get("/adapters")).json()["adapters"]
        told = [(await server.client.get(f"/info?adapter={one}")).json() for one in TWO]
        metrics = await server.metrics()
        answer = (await server.predict("a", adapter="topic")).json()

    assert new["replaced"] is None
    assert topic["replaced"] == {
        "digest": "digest-of-topic",
        "policy_changes": {
            "min_probability": {"before": 0.8, "after": 0.5},
            "digest": {"before": POLICY.digest, "after": None},
        },
        "question_policy_changes": {},
    }
    assert [(one["name"], one["policy_digest"], one["hand_made_policies"]) for one in listed] == [
        ("sentiment", POLICY.digest, 0), ("topic", None, 1), ("new", None, 1),
    ]  # fmt: skip
    assert [one["hand_made_policies"] for one in told] == [0, 1]
    by_name = [metrics[f'dalorra_hand_made_policies{{adapter="{one}"}}'] for one in TWO]
    assert by_name == [0, 1]
    assert answer["reason"].endswith(" (hand-made policy)")
    warned = [line for line in logs if line["event"] == "hand_made_policies"]
    assert [(line["log_level"], line["adapter"]) for line in warned] == [
        ("warning", "new"), ("warning", "topic"),
    ]  # fmt: skip
    changes = [line["policy_changes"] for line in logs if line["event"] == "adapter_loaded"]
    assert changes == [[], ["min_probability", "digest"]]


async def test_policies_of_single_questions_are_told_apart_too(managed: Any, root: Path):
    kept, gone, come = (Question.noul(f"Is it {word}?") for word in ("old", "red", "new"))
    first, second = FakeQuestions(), FakeQuestions()
    first.question_policies = {kept.digest: POLICY, gone.digest: POLICY}
    second.question_policies = {
        kept.digest: POLICY,
        come.digest: Policy(min_probability=0.5, max_variance=0.1, source="made up for a test"),
    }
    base = FakeBase(**{"topic": first, "topic-2": second})
    async with managed(base) as server:
        changed = (await load(server, "topic", root / "topic-2")).json()
        about = (await server.client.get("/adapters")).json()["adapters"][1]

    found = changed["replaced"]["question_policy_changes"]
    assert found.keys() == {gone.digest, come.digest}
    assert found[gone.digest]["min_probability"] == {"before": 0.8, "after": None}
    assert found[come.digest]["min_probability"] == {"before": None, "after": 0.5}
    assert about["hand_made_policies"] == 1


async def test_the_log_says_why_an_adapter_accepts_nothing(managed: Any):
    void = Policy.never("d1", "its policy has no digest")
    with capture_logs() as logs:
        async with managed(FakeBase(topic=FakePredictor(policy=void))):
            pass
    (line,) = [line for line in logs if line["event"] == "nothing_is_accepted"]
    assert (line["adapter"], line["reason"]) == ("topic", "its policy has no digest")


async def test_requests_finish_on_the_adapter_that_they_were_admitted_with(
    managed: Any, root: Path
):
    old, new = FakePredictor(), FakePredictor()
    base = FakeBase(**{"topic": old, "topic-2": new})
    async with managed(base) as server:
        old.gate.clear()

        def ask(text: str) -> Any:
            return asyncio.create_task(server.predict(text, adapter="topic"))

        running, waiting = ask("running"), ask("waiting")
        await server.until(lambda: server.lifecycle.engine.in_flight == 2)
        loading = asyncio.create_task(load(server, "topic", root / "topic-2"))
        await asyncio.sleep(0.02)
        assert not loading.done(), "the model thread is busy, and nothing is swapped"
        old.gate.set()
        await loading
        late = await ask("late")
        answers = [await running, await waiting]

    assert [one.status_code for one in answers] == [200, 200]
    assert sum(map(len, old.batches)) == 2
    assert late.status_code == 200
    assert sum(map(len, new.batches)) == 1


@pytest.mark.parametrize("how", ["damaged", "misfits", "cannot warm up"])
async def test_a_bad_directory_changes_nothing(managed: Any, root: Path, how: str):
    broken = FakePredictor()
    broken.broken = True
    base = FakeBase(**{"topic-2": broken} if how == "cannot warm up" else {})
    if how != "cannot warm up":
        setattr(base, how, {"topic-2"})
    async with managed(base) as server:
        before = (await server.client.get("/adapters")).json()
        series = set(await server.metrics())
        refused = [await load(server, name, root / "topic-2") for name in ("topic", "new")]
        assert (await server.client.get("/adapters")).json() == before
        assert set(await server.metrics()) == series
        answer = await server.predict("a", adapter="topic")

    for response in refused:
        assert (response.status_code, response.json()["error_type"]) == (422, "adapter_refused")
    assert answer.status_code == 200


async def test_the_server_answers_while_an_adapter_loads(managed: Any, root: Path):
    reading = threading.Event()
    base = FakeBase()
    read = base.read

    def slow(path: Path | None) -> str:
        if path and path.name == "topic-2":
            reading.wait(10)
        return read(path)

    base.read = slow  # type: ignore[method-assign]
    async with managed(base) as server:
        loading = asyncio.create_task(load(server, "new", root / "topic-2"))
        await asyncio.sleep(0.01)
        answer = await server.predict("a")
        assert not loading.done()
        reading.set()
        assert (await loading).status_code == 200
    assert answer.status_code == 200


async def test_series_come_and_go_with_their_adapter(managed: Any, root: Path):
    async with managed(FakeBase()) as server:
        before = set(await server.metrics())
        await load(server, "new", root / "topic-1")
        await server.predict("a", adapter="new")
        loaded = await server.metrics()
        await server.client.delete("/adapters/new", headers=ADMIN)
        after = set(await server.metrics())

    mine = {series for series in loaded if 'adapter="new"' in series}
    assert loaded['dalorra_labels_total{adapter="new",label="positive"}'] == 1
    assert loaded['dalorra_confidence_count{adapter="new"}'] == 1
    assert loaded['dalorra_adapter_bytes{adapter="new"}'] == 1_000
    assert any(series.startswith("dalorra_adapter_info{") for series in mine)
    assert after == before
    assert not any('adapter="new"' in series for series in after)


async def test_an_answer_after_the_unloading_brings_no_series_back(managed: Any, root: Path):
    slow = FakePredictor()
    async with managed(FakeBase(**{"topic-1": slow})) as server:
        await load(server, "new", root / "topic-1")
        slow.gate.clear()
        asked = asyncio.create_task(server.predict("a", adapter="new"))
        await server.until(lambda: len(slow.batches) == 1)
        await server.client.delete("/adapters/new", headers=ADMIN)
        slow.gate.set()
        assert (await asked).status_code == 200
        assert not any('adapter="new"' in series for series in await server.metrics())


async def test_the_default_stays_and_there_is_an_end_to_them(managed: Any, root: Path):
    async with managed(FakeBase(), max_adapters=3) as server:
        default = await server.client.delete("/adapters/sentiment", headers=ADMIN)
        unknown = await server.client.delete("/adapters/x", headers=ADMIN)
        third = await load(server, "third", "topic-1")
        fourth = await load(server, "fourth", "topic-1")
        instead = await load(server, "third", "topic-2")
        assert await names(server) == ["sentiment", "topic", "third"]
    assert (default.status_code, default.json()["error_type"]) == (409, "default_adapter")
    assert (unknown.status_code, unknown.json()["error_type"]) == (404, "unknown_adapter")
    assert third.status_code == instead.status_code == 200
    assert (fourth.status_code, fourth.json()["error_type"]) == (409, "too_many_adapters")


async def test_only_directories_below_a_root_are_read(managed: Any, root: Path):
    (root / "file").write_text("")
    (root / "link").symlink_to(root.parent / "elsewhere")
    (root / "other" / "weights").symlink_to("/etc/hostname")
    base = FakeBase()
    async with managed(base) as server:
        for path in ("/etc", "../elsewhere", root.parent / "elsewhere", "link", "other", root, ""):
            response = await load(server, "new", path)
            assert (response.status_code, response.json()["error_type"]) == (403, "forbidden"), path
        absent = await load(server, "new", "nowhere")
        odd = [await load(server, name, "topic-1") for name in ("a b", "x" * 40, "ä", ".x")]
        odd_paths = [await load(server, "new", path) for path in ("a\0b", "x" * 300, "file")]
    for one in (absent, *odd_paths):
        assert (one.status_code, one.json()["error_type"]) == (422, "adapter_refused")
    assert {one.status_code for one in odd} == {422}
    assert len(base.bound) == 2, "nothing was loaded"


async def test_only_administrators_change_adapters(managed: Any):
    async with managed(FakeBase(), api_keys="the-key-of-a-client") as server:
        put, delete = server.client.put, server.client.delete
        body = {"path": "topic-1"}
        nobody = [
            await put("/adapters/new", json=body),
            await delete("/adapters/topic"),
            await server.client.get("/adapters"),
        ]
        client = [
            await put("/adapters/new", json=body, headers=CLIENT),
            await delete("/adapters/topic", headers=CLIENT),
        ]
        allowed = await server.client.get("/adapters", headers=CLIENT)
        also = await server.predict("a", headers=ADMIN)
    assert {one.status_code for one in nobody} == {401}
    assert {(one.status_code, one.json()["error_type"]) for one in client} == {(403, "forbidden")}
    assert (allowed.status_code, also.status_code) == (200, 200)

    async with serving() as server:
        fixed = await load(server, "new", "topic-1")
    assert (fixed.status_code, fixed.json()["error_type"]) == (403, "forbidden")


async def test_without_keys_for_clients_an_administrator_still_needs_one(managed: Any):
    async with managed(FakeBase()) as server:
        assert (await load(server, "new", "topic-1", headers={})).status_code == 401
        assert (await load(server, "new", "topic-1", headers=CLIENT)).status_code == 403
        assert (await load(server, "new", "topic-1")).status_code == 200


@pytest.mark.parametrize(
    "text",
    ["sentiment=/a,topic=/b", " sentiment = /a , topic = /b ,", {"sentiment": "/a", "topic": "/b"}],
)
def test_adapters_are_set_by_name(text: Any):
    settings = load_settings(adapters=text)
    assert settings.first_adapters() == [("sentiment", Path("/a")), ("topic", Path("/b"))]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"adapters": "sentiment"}, "name=directory"),
        ({"adapters": {"a b": "/a"}}, "'a b' is no name for an adapter"),
        ({"adapters": "a=/a", "adapter": "/b"}, "adapter or adapters, not both"),
        ({"adapters": "a=/a,b=/b", "max_adapters": 1}, "max_adapters allows 1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        load_settings(**settings)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("DALORRA_ADAPTER", raising=False)
    return
