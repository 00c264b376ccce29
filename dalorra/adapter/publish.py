"""Adapters to the hub, and copies from there."""

import shutil
import tempfile
from pathlib import Path
from typing import Final

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from dalorra.adapter.directory import read_adapter
from dalorra.adapter.hub import READ, located
from dalorra.adapter.registered import QUESTIONS_FILE
from dalorra.decision.question_policies import QUESTION_POLICIES_FILE
from dalorra.errors import AdapterError
from dalorra.hub import TRANSPORT_ERROR, HubReference, first_line

PUBLISHED: Final = (
    *("*.safetensors", "adapter_config.json", "dalorra.json", "policy.json"),
    *(QUESTIONS_FILE, QUESTION_POLICIES_FILE, "README.md", "reliability.png"),
)
"""What is uploaded. Which inputs its policies were tested on (`looks.json`) stays with whoever has
these inputs."""


def push(folder: Path, hub_id: str, *, private: bool = False) -> str:
    """Publishes an adapter with its model card; a repository that is there gets a new commit.

    Args:
        folder: of the adapter.
        hub_id: `owner/name`.
        private: whether a repository that is made for it is.

    Returns:
        The reference that will always mean this adapter, `owner/name@commit`.

    Raises:
        AdapterError: it is damaged, or the hub does not take it; the message says why.
    """
    named = HubReference.of(hub_id)
    if named is None or named.revision is not None:
        raise AdapterError(f"{hub_id!r} is no place on the hub: write owner/name")
    adapter = read_adapter(folder)
    if get_token() is None:
        raise AdapterError(
            "the hub takes nothing without a token: set HF_TOKEN to one that may write, or log in "
            "with `hf auth login`"
        )
    api = HfApi()
    try:
        api.create_repo(hub_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=hub_id,
            folder_path=adapter.path,
            allow_patterns=[*PUBLISHED],
            commit_message=f"{adapter.manifest.name}, digest {adapter.digest[:12]}",
        )
    except (HfHubHTTPError, HFValidationError, TRANSPORT_ERROR, OSError, ValueError) as error:
        raise AdapterError(f"{hub_id} cannot be published: {_why(error)}") from error
    return f"{hub_id}@{commit.oid}"


def pull(reference: Path | str, out: Path) -> Path:
    """Copies an adapter, as a rule one of the hub's, into a folder of one's own.

    Raises:
        AdapterError: it cannot be had or is damaged, or `out` exists.
    """
    if out.exists():
        raise AdapterError(f"{out} exists: name a folder that does not")
    source = read_adapter(located(reference)).path
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for file in (file for pattern in READ for file in source.glob(pattern)):
            shutil.copyfile(file, staging / file.name)
        staging.chmod(0o755)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out


def _why(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        if error.response.status_code in (401, 403):
            return "this token may not write there: use one that may, or name another owner"
        return error.server_message or first_line(error)
    if isinstance(error, TRANSPORT_ERROR):
        return f"the hub cannot be reached ({first_line(error)})"
    return first_line(error)
