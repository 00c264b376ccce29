"""Which adapters are served; and, for operators, loading and unloading them without a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi import Path as InPath

from dalorra.errors import AdapterError
from service.adapter_names import ADAPTER_NAME
from service.adapters import Loaded
from service.api import problems
from service.api.callers import bearer_key
from service.api.routes import NOT_NOW
from service.api.schemas import (
    AdapterInfo,
    AdaptersResponse,
    LoadedResponse,
    LoadRequest,
    PolicyChange,
    ReplacedInfo,
)
from service.engine import Predictor
from service.errors import ForbiddenError, UnauthorizedError
from service.keys import fingerprint, matching
from service.lifecycle import Lifecycle
from service.policies import Change, PolicyChanges, hand_made_policies
from service.settings import Settings

_READ_ERRORS = problems.documented(problems.UNAUTHORIZED, *NOT_NOW)
_UNLOAD_ERRORS = problems.documented(
    problems.UNAUTHORIZED,
    problems.FORBIDDEN,
    problems.UNKNOWN_ADAPTER,
    problems.DEFAULT_ADAPTER,
    problems.INVALID,
    *NOT_NOW,
)
_LOAD_ERRORS = problems.documented(
    problems.MALFORMED,
    problems.UNAUTHORIZED,
    problems.FORBIDDEN,
    problems.TOO_MANY_ADAPTERS,
    problems.BODY_TOO_LARGE,
    problems.INVALID,
    problems.ADAPTER_REFUSED,
    *NOT_NOW,
)

Name = Annotated[
    str,
    InPath(pattern=f"^{ADAPTER_NAME}$", description="What requests call it.", examples=["topic"]),
]


def adapter_routes(settings: Settings, lifecycle: Lifecycle) -> APIRouter:
    """Listing is for whoever may predict, changing for the keys of `admin_keys`."""
    router = APIRouter(prefix="/adapters", tags=["adapters"])
    administrator = Depends(_administrators_only(settings))

    @router.get("", responses=_READ_ERRORS)
    async def adapters() -> AdaptersResponse:
        """What can be asked; the first answers requests that name none."""
        served = lifecycle.adapters.served
        return AdaptersResponse(
            default=served[0].card.adapter, adapters=[_about(one) for one in served]
        )

    @router.put("/{name}", responses=_LOAD_ERRORS)
    async def load(name: Name, body: LoadRequest, by: str = administrator) -> LoadedResponse:
        """Loads an adapter under a name, or replaces the one that has it.

        It is read, verified, checked against the unmodified model and warmed up while others are
        answered, and then takes its place in one step; if any of that fails, nothing changes.
        """
        path = await asyncio.to_thread(_below_a_root, body.path, settings.adapter_roots)
        return _loaded(await lifecycle.adapters.load(path, name, by=by))

    @router.delete("/{name}", responses=_UNLOAD_ERRORS)
    async def unload(name: Name, by: str = administrator) -> AdaptersResponse:
        """Unloads an adapter; what it was asked before is still answered. Returns what is left."""
        await lifecycle.adapters.unload(name, by=by)
        return await adapters()

    return router


def _about(predictor: Predictor) -> AdapterInfo:
    return AdapterInfo(
        name=predictor.card.adapter,
        digest=predictor.card.digest,
        method=predictor.card.method,
        scope=str(predictor.scope),
        samples=predictor.samples,
        labels=list(predictor.labels),
        fields=list(predictor.fields),
        max_tokens=predictor.max_tokens,
        bytes=predictor.nbytes,
        policy_digest=predictor.policy.digest,
        hand_made_policies=hand_made_policies(predictor),
    )


def _loaded(loaded: Loaded) -> LoadedResponse:
    about = _about(loaded.predictor).model_dump()
    if loaded.replaced is None:
        return LoadedResponse(**about, replaced=None)
    changes = PolicyChanges.between(loaded.replaced, loaded.predictor)
    replaced = ReplacedInfo(
        digest=loaded.replaced.card.digest,
        policy_changes=_in_json(changes.policy),
        question_policy_changes={
            question: _in_json(fields) for question, fields in changes.question_policies.items()
        },
    )
    return LoadedResponse(**about, replaced=replaced)


def _in_json(changes: Mapping[str, Change]) -> dict[str, PolicyChange]:
    return {
        name: PolicyChange(before=change.before, after=change.after)
        for name, change in changes.items()
    }


def _administrators_only(settings: Settings) -> Callable[[Request], Awaitable[str]]:
    """A dependency that lets keys of `admin_keys` pass, and gives the key's fingerprint."""
    known = settings.admin_key_digests()

    async def check(request: Request) -> str:
        if not known:
            raise ForbiddenError("adapters are fixed on this server: admin_keys are not set")
        if (key := bearer_key(request.scope)) is None:
            raise UnauthorizedError(
                "send a key of admin_keys in the header Authorization: Bearer …"
            )
        digest = matching(key, known)
        if digest is None:
            raise ForbiddenError("this key is none of admin_keys: it may not change adapters")
        return fingerprint(digest)

    return check


def _below_a_root(path: Path, roots: tuple[Path, ...]) -> Path:
    """The real directory that a client means, which must lie below one of the roots.

    Raises:
        ForbiddenError: it, or a file in it, lies elsewhere once links are followed.
        AdapterError: there is no such directory, or it cannot be read.
    """
    if not roots:
        raise ForbiddenError("no adapter is loaded over HTTP: adapter_roots are not set")
    try:
        for root in (root.resolve() for root in roots):
            real = (root / path).resolve()  # an absolute path stays what it is
            if not real.is_relative_to(root) or real == root:
                continue
            if all(file.resolve().is_relative_to(root) for file in real.iterdir()):
                return real
    except (OSError, ValueError) as error:  # a client may send text that cannot be a path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise AdapterError(f"{str(path)!r} is not a directory with an adapter: {reason}") from error
    raise ForbiddenError(
        f"adapters are loaded from below {', '.join(map(str, roots))} only, links included"
    )
