"""TLS without a proxy."""

import ssl

from dalorra.errors import ConfigError
from service.settings import Settings


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """What speaks TLS; None where no certificate is set.

    Raises:
        ConfigError: certificate and key cannot be read or do not belong together.
    """
    if settings.ssl_certfile is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An empty password: an encrypted key is refused here, rather than asked about later.
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, password="")
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
    return context
