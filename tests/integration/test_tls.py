"""TLS without a proxy, with a certificate that is made here."""

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dalorra.client import Client, TransportError
from dalorra.errors import ConfigError
from service.settings import Settings
from service.tls import tls_context
from tests.server_process import KEY, start

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    return write(folder / "cert.pem", folder / "key.pem")


def write(cert: Path, key: Path, password: bytes | None = None) -> tuple[Path, Path]:
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dalorra test")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(secret, hashes.SHA256())
    )
    cert.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    encryption: serialization.KeySerializationEncryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key.write_bytes(secret.private_bytes(pem, pkcs8, encryption))
    return cert, key


def test_a_server_with_a_certificate_speaks_tls_and_nothing_else(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    cert, key = certificate
    with start("fake", ssl_certfile=str(cert), ssl_keyfile=str(key)) as process:
        plain = process.url
        secure = plain.replace("http://", "https://")
        trusting = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(verify=trusting) as client:
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
