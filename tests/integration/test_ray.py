"""A local Ray, started and stopped here: scoring with Ray Data, serving with Ray Serve."""

import json
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml

from dalorra.adapter.directory import read_adapter
from dalorra.errors import BaseModelError
from dalorra.predictor import Predictor
from dalorra.scoring.job import Job
from dalorra.scoring.on_ray import on_ray
from dalorra.scoring.run import locally, score_file
from tests.tiny import SENTENCES, tiny_folders

ray = pytest.importorskip("ray", reason="pip install -e '.[ray]' brings it")

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

CONFIG = Path(__file__).parents[2] / "deploy/ray/serve.yaml"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    return tiny_folders(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            logging_level="error",
        )
        try:
            yield
        finally:
            ray.shutdown()


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


def test_ray_serve_has_the_same_http_surface(cluster, folders):
    from ray import serve

    from dalorra.cli.ray import NAME, build

    adapter, base = folders
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = {"adapter": str(adapter), "base_model": str(base), "dtype": "float32", "mcp": False}
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(given), name=NAME, route_prefix="/")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
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
            assert "dalorra_requests_total" in client.get("/metrics").text
    finally:
        serve.shutdown()


def test_the_shipped_configuration_is_one_that_ray_takes(cluster):
    from ray.serve.schema import ServeDeploySchema

    from dalorra.cli.ray import NAME
    from service.settings import load_settings

    shipped = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    (described,) = shipped.applications
    assert described.import_path == "dalorra.cli.ray:build"
    assert load_settings(**described.args).max_queue_requests == 2_048
    assert [deployment.name for deployment in described.deployments] == [NAME]
