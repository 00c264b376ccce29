"""A local Ray, started and stopped here: scoring with Ray Data, serving with Ray Serve."""

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml

from dalorra.adapter.directory import read_adapter
from dalorra.base.model import load_base_model
from dalorra.client import Client, NotFoundError
from dalorra.errors import BaseModelError, ConfigError
from dalorra.predictor import Predictor
from dalorra.scoring.answers import Line
from dalorra.scoring.job import Job
from dalorra.scoring.on_ray import on_ray
from dalorra.scoring.outputs import output_for
from dalorra.scoring.questions import Columns, Questions
from dalorra.scoring.run import locally, score_file
from tests.databases import postgres
from tests.fakes import FakePredictor, expected_prediction
from tests.tiny import FORMAT, SENTENCES, save_tiny_adapter, tiny_folders

ray = pytest.importorskip("ray", reason="pip install -e '.[ray]' brings it")

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    return tiny_folders(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    from tests.replicas import cluster

    with cluster():
        yield


def test_ray_data_answers_as_one_process_does(cluster, folders, tmp_path):
    adapter, base = folders
    source = tmp_path / "in.jsonl"
    texts = [f"{SENTENCES[n % 4]} {n * n}" for n in range(95)]
    source.write_text("".join(json.dumps({"sentence": text}) + "\n" for text in texts))
    load = partial(Predictor.load, adapter, str(base), dtype="float32", row_budget=512)
    scored = {}
    for name, answers in {
        "locally": locally(load),
        "on Ray": on_ray(load, workers=2),
    }.items():
        out = tmp_path / f"{name}.jsonl"
        job = Job.for_adapter(read_adapter(adapter), source, out, names={}, batch_rows=320)
        score_file(job, answers)
        scored[name] = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["sentence"] for line in scored["on Ray"]] == texts
    for here, there in zip(scored["locally"], scored["on Ray"], strict=True):
        assert there["label"] == here["label"]
        assert there["probability"] == pytest.approx(here["probability"], abs=1e-5)
        assert there["variance"] == pytest.approx(here["variance"], abs=1e-5)

    unfit = partial(Predictor.load, adapter, str(tmp_path / "no such model"))
    job = Job.for_adapter(read_adapter(adapter), source, tmp_path / "unfit.jsonl", names={})
    with pytest.raises(BaseModelError, match="no such model"):
        score_file(job, on_ray(unfit, workers=1))


def test_every_record_is_answered_once_and_in_its_place_though_a_worker_is_killed(
    cluster, tmp_path
):
    from tests.replicas import SCORER, processes

    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    texts = [f"{SENTENCES[n % 4]} {n}" for n in range(50_000)]
    source.write_text("".join(json.dumps({"sentence": text}) + "\n" for text in texts))
    output = output_for(out, FakePredictor.labels, source)
    job = Job(source, out, output, Columns(FORMAT, {}))
    others: set[int] = set()

    def with_a_killed_worker(questions: Questions) -> Iterator[list[Line]]:
        windows = on_ray(partial(FakePredictor, seconds=0.01), workers=2)(questions)
        for number, lines in enumerate(windows):
            if number == 200:
                victim, *left = processes(SCORER)
                others.update((victim.pid, *(one.pid for one in left)))
                victim.kill()
            if number == 700:
                replaced = {one.pid for one in processes(SCORER)} - others
            yield lines
        assert replaced, "it died before it had done its part"

    assert sum(score_file(job, with_a_killed_worker).values()) == len(texts)
    with out.open() as lines:
        answered = [json.loads(line) for line in lines]
    assert [line["sentence"] for line in answered] == texts
    predictor = FakePredictor()
    expected = [expected_prediction(predictor.encode(text)).probability for text in texts]
    assert [line["probability"] for line in answered] == expected


@pytest.fixture(scope="module")
def service(cluster, folders, tmp_path_factory):
    """Deployed by each test with as many replicas as it needs."""
    from ray import serve

    from tests.replicas import Service

    adapter, base = folders
    given = {"adapter": str(adapter), "base_model": str(base), "dtype": "float32", "mcp": False}
    with postgres() as database:
        try:
            folder = tmp_path_factory.mktemp("serve")
            yield Service(folder, **given, feedback_url=database.url)
        finally:
            serve.shutdown()


def test_ray_serve_has_the_same_http_surface(service, folders):
    adapter, base = folders
    service.deploy(1)
    with httpx.Client(base_url=service.url, timeout=60) as client:
        # The replica counts as started once its model is ready: no call finds it loading.
        assert client.get("/health/ready").json() == {"status": "ready"}
        predictor = Predictor.load(adapter, str(base), dtype="float32")
        answers = client.post("/predict/batch", json={"inputs": list(SENTENCES)}).json()
        for answer, text in zip(answers["predictions"], SENTENCES, strict=True):
            (expected,) = predictor.predict([predictor.encode(text)])
            assert answer["label"] == expected.label
            assert answer["probability"] == pytest.approx(expected.probability, abs=1e-5)
        assert client.get("/info").json()["adapter_digest"] == read_adapter(adapter).digest
        refused = client.post("/predict", json={"input": ""})
        assert (refused.status_code, refused.json()["error_type"]) == (422, "invalid_input")
        assert refused.headers["x-request-id"] == refused.json()["request_id"]
        assert client.get("/-/routes").json() == {"/": "dalorra"}


def test_replicas_come_and_go_and_no_request_notices(service):
    from tests.replicas import Callers

    service.deploy(1)
    with Callers(service.url) as callers:
        service.deploy(3)
        assert len(service.instances()) == 3
        service.deploy(1)
    assert callers.errors == []
    assert {answer.status for answer in callers.answers} == {200}


def test_a_killed_replica_takes_with_it_only_what_it_had_in_hand(service):
    from tests.replicas import REPLICA, Callers, processes, until

    service.deploy(3)
    before = set(service.instances())
    with Callers(service.url, plain=12, patient=4) as callers:
        victim = processes(REPLICA)[0]
        victim.suspend()
        suspended = [time.monotonic()]

        def one_waits_for_it() -> bool:
            """One is overtaken by many; had it nothing in hand, another moment may be better."""
            if time.monotonic() > suspended[-1] + 15:
                victim.resume()
                time.sleep(0.1)
                victim.suspend()
                suspended.append(time.monotonic())
            return callers.overtaken > 36

        until(one_waits_for_it, "it has requests in hand")
        killed = time.monotonic()
        victim.kill()
        until(lambda: len(set(service.instances()) - before) == 1, "another replica")
        answers, patient = len(callers.answers), callers.patient
        until(lambda: len(callers.answers) > answers and callers.patient > patient, "answers")
    assert callers.errors == []
    lost = [answer for answer in callers.answers if answer.status != 200]
    assert 0 < len(lost) <= 12  # a caller waits for its answer before it asks again
    for answer in lost:
        assert answer.asked < killed < answer.answered
        assert (answer.status, answer.body["error_type"]) == (503, "unavailable")
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["x-request-id"] == answer.body["request_id"]
    assert len(set(service.instances()) & before) == 2


def test_metrics_and_feedback_of_all_are_in_one_place(service):
    from tests.replicas import until

    service.deploy(3)
    instances = set(service.instances())
    earlier = service.of_each("dalorra_decisions_total")
    assert set(earlier) == instances
    with Client(service.url) as client:
        answers = [client.predict(text) for text in [*SENTENCES] * 8]
        later = service.of_each("dalorra_decisions_total")
        assert sum(later.values()) - sum(earlier.values()) == len(answers)
        assert sum(later[one] > earlier[one] for one in instances) > 1
        for answer in answers:
            until(lambda answer=answer: _judged(client, answer), "feedback")
    taken = service.of_each("dalorra_feedback_total")
    assert sum(taken.values()) == len(answers)
    assert sum(count > 0 for count in taken.values()) > 1
    known = dict.fromkeys(instances, len(answers))
    until(lambda: service.of_each("dalorra_judged_answers") == known, "all know of all")


def _judged(client: Client, answer) -> bool:
    """An answer is known to the others once it is written."""
    try:
        client.feedback(answer.request_id, answer.label)
    except NotFoundError:
        return False
    return True


def test_another_adapter_is_rolled_out_without_a_lost_request(service, folders, tmp_path):
    from tests.replicas import Callers

    _, base = folders
    other = save_tiny_adapter(
        tmp_path / "other", load_base_model(str(base), dtype="float32"), seed=2
    )
    service.deploy(3)
    [old] = set(service.instances().values())
    with Client(service.url) as client:
        first = client.predict_batch(SENTENCES)
    with Callers(service.url) as callers:
        service.deploy(3, adapter=str(other))
    assert callers.errors == []
    assert {answer.status for answer in callers.answers} == {200}
    assert set(service.instances().values()) == {read_adapter(other).digest} != {old}
    with Client(service.url) as client:
        last = client.predict_batch(SENTENCES)
    given = {
        tuple(round(one["probability"], 4) for one in answer.body["predictions"])
        for answer in callers.answers
    }
    assert given == {tuple(round(one.probability, 4) for one in they) for they in (first, last)}


def test_an_adapter_that_does_not_load_takes_nobodys_place(service, folders, tmp_path):
    from tests.replicas import Callers, until

    adapter, _ = folders
    service.deploy(1, adapter=str(adapter))
    before = service.instances()
    with Callers(service.url) as callers:
        service.submit(1, adapter=str(tmp_path / "nowhere"))
        until(lambda: service.status.status == "DEPLOY_FAILED", "it is refused")
        assert service.instances() == before
        assert "nowhere" in service.status.deployments["dalorra"].message
        service.deploy(1, adapter=str(adapter))
        assert service.instances() == before
    assert callers.errors == []
    assert {answer.status for answer in callers.answers} == {200}


def test_the_shipped_configuration_is_one_that_ray_takes(cluster):
    from ray.serve.schema import ServeDeploySchema

    from dalorra.cli.ray import NAME, build
    from service.settings import load_settings
    from tests.replicas import CONFIG

    shipped = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    (described,) = shipped.applications
    assert described.import_path == "dalorra.cli.ray:build"
    assert load_settings(**described.args).max_queue_requests == 2_048
    assert [deployment.name for deployment in described.deployments] == [NAME]
    with pytest.raises(ConfigError, match="reaches one replica only"):
        build({"adapter_roots": "/adapters"})
