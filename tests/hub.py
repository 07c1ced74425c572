"""A stand-in for the Hugging Face hub on this machine, which the real client uploads to and downloads from."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

_OWNER = "me"


@dataclass
class Repository:
    """A model on the hub: its files by branch, and the titles of its commits."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """Models by name, the tokens that may write (of the namespace `me`), and the files sent to the large-file store."""

    endpoint: str = ""
    tokens: tuple[str, ...] = ("hf_writer",)
    models: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve an empty hub on a port of 127.0.0.1."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Refusal(Exception):
    """An HTTP error: its status and, if not the usual one, its body."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._answer({r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?": self._info, _TREE: self._tree})

    def do_POST(self) -> None:
        self._answer(
            {
                r"/api/repos/create": self._create,
                r"/api/validate-yaml": lambda: {"errors": [], "warnings": []},
                r"/api/models/(.+)/branch/(.+)": self._branch,
                r"/api/models/(.+)/preupload/(.+)": self._preupload,
                r"/api/models/(.+)/commit/(.+)": self._commit,
                r"/(.+)\.git/info/lfs/objects/batch": self._batch,
            }
        )

    def do_PUT(self) -> None:
        self._answer({r"/large/(.+)": self._store})

    def _answer(self, routes: dict) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        status, found = 404, {"error": f"no {path}"}
        for pattern, handle in routes.items():
            if match := re.fullmatch(pattern, path):
                try:
                    status, found = 200, handle(*match.groups())
                except _Refusal as refusal:
                    status, *more = refusal.args
                    found = more[0] if more else {"error": f"refused {path}"}
                break
        content = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _check_writer(self, namespace: str) -> None:
        if self.headers.get("Authorization") not in [f"Bearer {token}" for token in self.hub.tokens]:
            raise _Refusal(401)
        if namespace != _OWNER:
            raise _Refusal(403)

    def _repository(self, name: str) -> Repository:
        if name not in self.hub.models:
            raise _Refusal(404)
        return self.hub.models[name]

    def _create(self) -> dict:
        asked = json.loads(self.body)
        namespace = asked.get("organization") or _OWNER
        self._check_writer(namespace)
        name = f"{namespace}/{asked['name']}"
        found = {"url": f"{self.hub.endpoint}/{name}", "name": name}
        if name in self.hub.models:
            raise _Refusal(409, found)
        self.hub.models[name] = Repository(asked.get("private") is True or asked.get("visibility") == "private")
        return found

    def _info(self, name: str, revision: str | None) -> dict:
        return {"id": name, "private": self._repository(name).private, "sha": "0" * 40, "siblings": [], "tags": []}

    def _tree(self, name: str, revision: str) -> list[dict]:
        files = self._repository(name).branches[revision]
        return [{"type": "file", "path": path, "size": len(held), "oid": "0" * 40} for path, held in files.items()]

    def _branch(self, name: str, branch: str) -> dict:
        self._check_writer(name.split("/")[0])
        branches = self._repository(name).branches
        if branch in branches:
            raise _Refusal(409)
        branches[branch] = dict(branches["main"])
        return {}

    def _preupload(self, name: str, branch: str) -> dict:
        self._check_writer(name.split("/")[0])
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
        return {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]}

    def _batch(self, name: str) -> dict:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.endpoint}/large/{one['oid']}"}}}
            for one in json.loads(self.body)["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def _store(self, oid: str) -> dict:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.large[oid] = self.body
        return {}

    def _commit(self, name: str, branch: str) -> dict:
        self._check_writer(name.split("/")[0])
        repository = self._repository(name)
        files = dict(repository.branches[branch])
        for line in self.body.splitlines():
            operation = json.loads(line)
            kind, value = operation["key"], operation["value"]
            if kind == "header":
                repository.commits.append(value["summary"])
            elif kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                assert kind == "deletedFile"
                del files[value["path"]]
        repository.branches[branch] = files
        return {"success": True, "commitOid": "1" * 40, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{'1' * 40}"}


_TREE = r"/api/models/(.+)/tree/([^/]+)"
