"""Adapters by reference: a folder here, or a model on the hub. Safetensors and JSON only."""

from pathlib import Path
from typing import Final

from huggingface_hub import snapshot_download

from dalorra.errors import AdapterError, ConfigError
from dalorra.hub import HubReference, in_words

READ: Final = ("*.safetensors", "*.json")
"""What is downloaded, of the files at the top of a repository: nothing in them can execute."""


def located(reference: Path | str) -> Path:
    """The folder that a reference means; what is not here is looked for on the hub.

    Args:
        reference: a folder, or `owner/name` or `owner/name@revision` of a model on the hub.

    Raises:
        AdapterError: it is a hub id, but cannot be downloaded.
    """
    path = Path(reference)
    named = HubReference.of(path.as_posix())
    if named is None or path.exists():
        return path
    with in_words(named, "adapter", AdapterError):
        folder = snapshot_download(
            named.id, revision=named.revision, allow_patterns=[*READ], ignore_patterns=["*/*"]
        )
    return Path(folder)


def own_folder(reference: Path) -> Path:
    """The same for those who write into the folder.

    Raises:
        ConfigError: it is a hub id: what is cached of the hub stays as the hub has it.
    """
    if HubReference.of(reference.as_posix()) and not reference.exists():
        raise ConfigError(
            f"{reference} is no local folder, and this writes into the adapter's: if the hub has "
            f"it, copy it with `dalorra pull {reference} DIR`"
        )
    return reference
