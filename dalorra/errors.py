"""Every error that the project raises on purpose, so that callers can catch one class.

Each message is one sentence that names what is wrong and what would be right.
"""


class DalorraError(Exception):
    """Base class of all of them."""


class InputError(DalorraError, ValueError):
    """An input that the adapter's template cannot take: missing field, empty, over-long.

    Attributes:
        place: which of several inputs of one request it is; None where there is only one.
    """

    def __init__(self, message: str, place: int | None = None) -> None:
        super().__init__(message)
        self.place = place


class TooLongError(InputError):
    """A question that takes more tokens than its adapter reads."""


class AdapterError(DalorraError):
    """An adapter directory that is damaged, unknown, or made for another base model."""


class BaseModelError(DalorraError):
    """A base model that cannot be found, fetched, verified or used."""


class ConfigError(DalorraError):
    """A setting or a training configuration that cannot be carried out."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the work where it can go on later; no fault, so no `DalorraError`.

    Attributes:
        signum: SIGINT, which is Ctrl-C, or SIGTERM.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
