"""The model hub: references to what is there, and one sentence for whatever goes wrong with it.

What is downloaded is kept where `huggingface_hub` keeps it (`HF_HOME`), and its variables apply:
`HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Self, cast

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dalorra.errors import DalorraError

_REFERENCE: Final = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w][\w./-]*))?")

TRANSPORT_ERROR: Final = cast(type[Exception], HfHubHTTPError.__bases__[0])
"""What the HTTP library raises that this release of `huggingface_hub` stands on."""


@dataclass(frozen=True, slots=True)
class HubReference:
    """`owner/name`, or `owner/name@revision`.

    Attributes:
        id: owner and name.
        revision: branch, tag or commit; None: the main branch.
    """

    id: str
    revision: str | None = None

    @classmethod
    def of(cls, text: str) -> Self | None:
        """What a text refers to; None where it is no reference of that form."""
        found = _REFERENCE.fullmatch(text)
        return cls(found[1], found[2]) if found else None


@contextmanager
def in_words(reference: HubReference, what: str, error: type[DalorraError]) -> Iterator[None]:
    """Turns what a download raises in the block into one sentence.

    Args:
        reference: what is downloaded.
        what: it is, such as `model`.
        error: to raise.
    """
    hub_id = reference.id
    try:
        yield
    except GatedRepoError as cause:
        raise error(
            f"the hub's {what} {hub_id} needs its licence accepted on its page, and HF_TOKEN set"
        ) from cause
    except RepositoryNotFoundError as cause:
        raise error(
            f"there is no folder {hub_id}, and the hub has no {what} {hub_id}, or it is private "
            "and HF_TOKEN does not open it"
        ) from cause
    except RevisionNotFoundError as cause:
        raise error(f"the hub's {what} {hub_id} has no revision {reference.revision}") from cause
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as cause:
        raise error(
            f"{hub_id} is no local folder, and the model hub cannot be reached to download it"
        ) from cause
    except (EntryNotFoundError, HFValidationError, TRANSPORT_ERROR, OSError, ValueError) as cause:
        raise error(
            f"the hub's {what} {hub_id} cannot be downloaded: {first_line(cause)}"
        ) from cause


def first_line(error: Exception) -> str:
    """The first line that an error says, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
