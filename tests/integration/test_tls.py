"""TLS without a proxy, with a certificate that is made here."""

import ssl
from pathlib import Path

import httpx
import pytest

from dalorra.client import Client, TransportError
from dalorra.errors import ConfigError
from service.settings import Settings
from service.tls import tls_context
from tests.certificates import write
from tests.server_process import KEY, start

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    return write(folder / "cert.pem", folder / "key.pem")


def test_a_server_with_a_certificate_speaks_tls_and_nothing_else(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    cert, key = certificate
    with start("fake", ssl_certfile=str(cert), ssl_keyfile=str(key)) as process:
        plain = process.url
        secure = plain.replace("http://", "https://")
        trusting = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(verify=trusting, timeout=30.0) as client:
            assert client.get(f"{secure}/health/live").status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{plain}/health/live")
        with Client(secure, api_key=KEY) as client, pytest.raises(TransportError):
            client.predict("a stranger's certificate")
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        with Client(secure, api_key=KEY) as client:
            assert client.predict("hello").label == "positive"
        assert process.stop() == 0


@pytest.mark.parametrize("what", ["missing", "no certificate", "another's key", "encrypted key"])
def test_what_is_no_certificate_is_refused_in_a_sentence(
    certificate: tuple[Path, Path], tmp_path: Path, what: str
):
    cert, key = certificate
    if what == "missing":
        cert = tmp_path / "missing.pem"
    elif what == "no certificate":
        cert = tmp_path / "text.pem"
        cert.write_text("not a certificate")
    elif what == "another's key":
        _, key = write(tmp_path / "other.pem", tmp_path / "other-key.pem")
    else:
        cert, key = write(tmp_path / "cert.pem", tmp_path / "key.pem", b"secret")
    with pytest.raises(ConfigError, match="the key not encrypted") as refused:
        tls_context(Settings(ssl_certfile=cert, ssl_keyfile=key))
    assert str(refused.value).startswith(f"ssl_certfile {cert} and ssl_keyfile {key}: ")
    assert "\n" not in str(refused.value)
