"""A stand-in for the model hub, on a port of this machine: the endpoints that adapters need."""

import base64
import hashlib
import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_of-the-tests"
OWNER = "acme"
"""Whose repositories the token may write."""

Files = dict[str, bytes]


class Hub:
    """What is on it, and what it was asked.

    Attributes:
        commits: of every repository, the latest last: hash and files.
        private: repositories that only the token opens.
        asked: method and path of every request.
    """

    def __init__(self) -> None:
        self.commits: defaultdict[str, list[tuple[str, Files]]] = defaultdict(list)
        self.private: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.large: Files = {}
        self.url = ""

    def commit(self, repository: str, files: Files) -> str:
        """Adds these to the files of the commit before."""
        before = self.commits[repository][-1][1] if self.commits[repository] else {}
        named = f"{repository} {len(self.commits[repository])} {sorted(files)}"
        sha = hashlib.sha1(named.encode(), usedforsecurity=False).hexdigest()
        self.commits[repository].append((sha, before | files))
        return sha

    def find(self, repository: str, revision: str) -> tuple[str, Files] | None:
        found = self.commits[repository]
        if revision == "main":
            return found[-1] if found else None
        return next((commit for commit in found if commit[0] == revision), None)

    @property
    def downloaded(self) -> set[str]:
        """Names of the files that were read."""
        paths = [path for method, path in self.asked if method == "GET" and "/resolve/" in path]
        return {path.rpartition("/")[2] for path in paths}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("transfer-encoding") == "chunked":
            body = self._chunks()
        for pattern, answer in _ROUTES:
            if (found := re.fullmatch(pattern, f"{self.command} {path}")) is not None:
                answer(self, body, *found.groups())
                return
        self._send(404, {"error": f"{self.command} {path} is nothing here"})

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, content: Any, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _authorized(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def _may_write(self, owner: str) -> bool:
        if not self._authorized():
            self._send(401, {"error": "Invalid username or password."})
        elif owner != OWNER:
            self._send(403, {"error": f"You don't have the rights to write to {owner}"})
        return self._authorized() and owner == OWNER

    def _found(self, repository: str, revision: str) -> tuple[str, Files] | None:
        hidden = repository in self.hub.private and not self._authorized()
        if hidden or not self.hub.commits[repository]:
            self._send(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        found = self.hub.find(repository, revision)
        if found is None:
            self._send(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        return found

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        owner = wanted["organization"] or OWNER
        repository = f"{owner}/{wanted['name']}"
        if not self._may_write(owner):
            return
        if self.hub.commits.get(repository):
            self._send(409, {"error": "There is one", "url": f"{self.hub.url}/{repository}"})
            return
        if wanted.get("visibility") == "private" or wanted.get("private"):
            self.hub.private.add(repository)
        self._send(200, {"url": f"{self.hub.url}/{repository}"})

    def validate(self, body: bytes) -> None:
        card = json.loads(body)["content"]
        good = card.startswith("---\n") and "base_model:" in card
        errors = [] if good else [{"message": '"base_model" is missing'}]
        self._send(200 if good else 400, {"errors": errors, "warnings": []})

    def preupload(self, body: bytes, repository: str, _revision: str) -> None:
        if not self._may_write(repository.partition("/")[0]):
            return
        paths = [file["path"] for file in json.loads(body)["files"]]
        large = {path for path in paths if path.endswith((".safetensors", ".png"))}
        modes = {path: "lfs" if path in large else "regular" for path in paths}
        files = [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]
        self._send(200, {"files": files})

    def batch(self, body: bytes, _repository: str) -> None:
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}}
            for wanted in json.loads(body)["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects})

    def store(self, body: bytes, oid: str) -> None:
        same = hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        self._send(200 if same else 400, {})

    def take(self, body: bytes, repository: str, _revision: str) -> None:
        if not self._may_write(repository.partition("/")[0]):
            return
        files = {}
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        sha = self.hub.commit(repository, files)
        url = f"{self.hub.url}/{repository}/commit/{sha}"
        self._send(200, {"success": True, "commitOid": sha, "commitUrl": url})

    def info(self, _body: bytes, repository: str, revision: str | None) -> None:
        if (found := self._found(repository, revision or "main")) is not None:
            siblings = [{"rfilename": name} for name in found[1]]
            self._send(200, {"id": repository, "sha": found[0], "siblings": siblings})

    def tree(self, _body: bytes, repository: str, revision: str) -> None:
        if (found := self._found(repository, revision)) is not None:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                for name, data in found[1].items()
            ]
            self._send(200, entries)

    def resolve(self, _body: bytes, repository: str, revision: str, name: str) -> None:
        found = self._found(repository, revision)
        if found is None:
            return
        if name not in found[1]:
            self._send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            return
        data = found[1][name]
        self._send(200, data, ETag=f'"{_etag(data)}"', X_Repo_Commit=found[0])


def _etag(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


_REPO = r"([\w.-]+/[\w.-]+)"
_ROUTES = (
    ("POST /api/repos/create", _Handler.create),
    ("POST /api/validate-yaml", _Handler.validate),
    (f"POST /api/models/{_REPO}/preupload/(.+)", _Handler.preupload),
    (f"POST /{_REPO}.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT /lfs/(.+)", _Handler.store),
    (f"POST /api/models/{_REPO}/commit/(.+)", _Handler.take),
    (f"GET /api/models/{_REPO}/tree/([^/]+)", _Handler.tree),
    (f"GET /api/models/{_REPO}(?:/revision/(.+))?", _Handler.info),
    (f"(?:GET|HEAD) /{_REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub until the end of the block."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()


def use(hub_url: str, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `huggingface_hub` in this process ask that hub, with a token and an empty cache."""
    monkeypatch.setattr(constants, "ENDPOINT", hub_url)
    template = f"{hub_url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
