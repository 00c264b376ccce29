"""TLS without a proxy."""

import ssl
from typing import Any

from dalorra.errors import ConfigError
from service.settings import Settings


def tls_options(settings: Settings) -> dict[str, Any]:
    """What uvicorn is told so that it speaks TLS; nothing where no certificate is set.

    Raises:
        ConfigError: certificate and key cannot be read or do not belong together.
    """
    if settings.ssl_certfile is None:
        return {}
    try:
        # An empty password: an encrypted key is refused here, rather than asked about later.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            settings.ssl_certfile, settings.ssl_keyfile, password=""
        )
    except OSError as error:
        names = " and ".join(
            f"{name} {path}"
            for name, path in (
                ("ssl_certfile", settings.ssl_certfile),
                ("ssl_keyfile", settings.ssl_keyfile),
            )
            if path is not None
        )
        raise ConfigError(
            f"{names}: {error.strerror or error}; a certificate and its private key are needed, "
            "both PEM, the key not encrypted"
        ) from None
    return {"ssl_certfile": settings.ssl_certfile, "ssl_keyfile": settings.ssl_keyfile}
