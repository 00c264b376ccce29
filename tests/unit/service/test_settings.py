"""Where settings come from, which wins, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from dalorra.errors import ConfigError
from dalorra.forward.batches import DEFAULT_ROW_BUDGET
from service.keys import digest, hash_key
from service.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.upper().startswith("DALORRA_"):
            monkeypatch.delenv(name)


def test_flags_win_over_the_environment_over_the_file_over_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = tmp_path / "service.yaml"
    config.write_text("port: 1\nhost: file\ndevice: cpu\n")
    monkeypatch.setenv("DALORRA_PORT", "2")
    monkeypatch.setenv("DALORRA_HOST", "environment")

    settings = load_settings(config, port=3, device=None)

    assert (settings.port, settings.host, settings.device) == (3, "environment", "cpu")
    assert settings.batch_rows == Settings().batch_rows == DEFAULT_ROW_BUDGET


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.toml", 'port = 1234\napi_keys = ["k"]'), ("a.yaml", "port: 1234\napi_keys: [k]")],
)
def test_files_are_toml_or_yaml(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text)

    settings = load_settings(tmp_path / name)

    assert settings.port == 1234
    assert settings.key_digests() == (digest("k"),)


def test_the_environment_may_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.yaml").write_text("port: 1234")
    monkeypatch.setenv("DALORRA_CONFIG", str(tmp_path / "a.yaml"))
    monkeypatch.setenv("DALORRA_CACHE", "/somewhere")

    assert load_settings().port == 1234


def test_an_empty_file_sets_nothing(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("# nothing yet\n")

    assert load_settings(tmp_path / "a.yaml") == Settings()


@pytest.mark.parametrize(
    ("environment", "text", "overrides", "says"),
    [
        ({"DALORRA_PROT": "1"}, "", {}, "variable DALORRA_PROT: .*'prot'.*did you mean 'port'"),
        ({"dalorra_prot": "1"}, "", {}, "dalorra_prot"),
        ({}, "prot: 1", {}, "a.yaml: the setting 'prot' is unknown: did you mean 'port'"),
        ({}, "", {"prot": 1}, "the setting 'prot' is unknown: did you mean 'port'"),
        ({}, "", {"zzzzzz": 1}, "known: host, port"),
        ({"DALORRA_PORT": "many"}, "", {}, r"port \(from DALORRA_PORT\): .*integer"),
        ({}, "port: 70000", {}, r"port \(in .*a.yaml\): .*65535"),
        ({}, "", {"port": -1}, r"port \(given\): "),
        ({}, "", {"on_overflow": "explode"}, "'truncate' or 'reject'"),
        ({}, "- a\n- b", {}, "must hold settings by name"),
        ({}, "a: [", {}, "is not valid yaml"),
        ({}, "", {"api_keys": "a,,b"}, "api_keys .*a key is empty"),
        ({}, "", {"api_keys": "sha256:12"}, "api_keys .*64 hexadecimal digits do not follow"),
        ({}, "", {"rate_limit": 5}, "rate_limit .*needs api_keys"),
        ({}, "", {"ssl_keyfile": "k.pem"}, "ssl_keyfile needs ssl_certfile"),
        ({}, "", {"cors_origins": "app.example"}, "'app.example' is no origin: write scheme://"),
        ({}, "", {"cors_origins": "https://a.example/path"}, "is no origin"),
        ({}, "", {"cors_origins": "https://*.example"}, "is no origin"),
        ({}, "", {"max_queue_requests": 5}, r"max_batch_inputs \(128\) is above"),
        ({"DALORRA_PORT": "tcp://10.0.0.1:80"}, "", {}, "enableServiceLinks: false"),
        ({"DALORRA_SERVICE_HOST": "10.0.0.1"}, "", {}, "enableServiceLinks: false"),
        ({"DALORRA_PORT_80_TCP_ADDR": "10.0.0.1"}, "", {}, "enableServiceLinks: false"),
    ],
)
def test_what_is_unknown_or_wrong_is_fatal_in_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    text: str,
    overrides: dict[str, Any],
    says: str,
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "a.yaml").write_text(text)

    with pytest.raises(ConfigError, match=says) as refused:
        load_settings(tmp_path / "a.yaml", **overrides)

    assert "\n" not in str(refused.value)


def test_a_file_that_is_missing_is_fatal(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path / "missing.toml")


def test_keys_come_from_the_setting_and_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hashed = hash_key("a-key-of-decent-length")
    (tmp_path / "keys").write_text(f"# ours\nthird\n\n {hashed} # billing \n")
    monkeypatch.setenv("DALORRA_API_KEYS", "first, second")

    settings = load_settings(api_keys_file=tmp_path / "keys")

    assert settings.key_digests() == tuple(
        map(digest, ("first", "second", "third", "a-key-of-decent-length"))
    )


@pytest.mark.parametrize("text", ["", "\n \n", "# none yet", "sha256:abc", None])
def test_a_key_file_without_keys_is_fatal_as_it_would_open_the_server(
    tmp_path: Path, text: str | None
):
    if text is not None:
        (tmp_path / "keys").write_text(text)

    with pytest.raises(ConfigError, match="api_keys_file"):
        load_settings(api_keys_file=tmp_path / "keys").key_digests()


def test_no_key_is_ever_shown(tmp_path: Path):
    settings = load_settings(api_keys="topsecret,another")

    with capture_logs() as logs:
        import structlog

        structlog.get_logger().info("starting", **settings.redacted())

    assert logs[0]["api_keys"] == "2 set"
    for shown in (str(logs), repr(settings), settings.model_dump_json()):
        assert "topsecret" not in shown
    (tmp_path / "a.yaml").write_text("api_keys: {topsecret: 1")
    with pytest.raises(ConfigError) as refused:
        load_settings(tmp_path / "a.yaml")
    assert "topsecret" not in str(refused.value)
    with pytest.raises(ConfigError) as refused:
        load_settings(api_keys=["topsecret", ""])
    assert "topsecret" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"feedback_url": "topsecret@host/database"}, "feedback_url .*: write postgresql://user"),
        (
            {"feedback_url": "postgresql://topsecret", "feedback_store": "f.sqlite"},
            "give feedback_store or feedback_url, not both",
        ),
        (
            {"limits_url": "http://topsecret", "api_keys": "k", "rate_limit": 1},
            "limits_url .*: write redis://user",
        ),
        ({"limits_url": "redis://topsecret"}, "limits_url is where rate_limit is counted"),
    ],
)
def test_addresses_that_cannot_be_are_refused_and_not_shown(given: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message) as refused:
        load_settings(**given)
    assert "topsecret" not in str(refused.value)


def test_the_password_of_an_address_is_never_shown():
    settings = load_settings(
        feedback_url="postgresql://me:topsecret@host/database",
        limits_url="redis://:topsecret@host",
        api_keys="k",
        rate_limit=1,
        policy_action="strict",
    )
    options = settings.feedback_options()
    assert options is not None
    for shown in (
        str(settings.redacted()),
        repr(settings),
        settings.model_dump_json(),
        repr(options),
    ):
        assert "topsecret" not in shown
    assert options.place == "postgresql://me:topsecret@host/database"


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]
