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
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0" * 40
_OWNER = "me"


@dataclass
class Repository:
    """A model or data set on the hub: its files by branch, and the titles of its commits."""

    private: bool = False
    gated: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """Repositories by name, the tokens that may write (of the namespace `me`), and the large-file store."""

    endpoint: str = ""
    datasets: dict[str, Repository] = field(default_factory=dict)
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
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self._send_file(*match.groups())
            return
        self._answer(
            {
                r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?": self._info,
                r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?": self._tree,
            }
        )

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(
            {
                r"/api/repos/create": self._create,
                r"/api/validate-yaml": lambda: {"errors": [], "warnings": []},
                r"/api/models/(.+)/branch/(.+)": self._branch,
                r"/api/models/(.+)/preupload/(.+)": self._preupload,
                r"/api/models/(.+)/commit/(.+)": self._commit,
                r"/api/(models|datasets)/([^/]+/[^/]+)/paths-info/([^/]+)": self._paths_info,
                r"/(.+)\.git/info/lfs/objects/batch": self._batch,
            }
        )

    def do_PUT(self) -> None:
        self._answer({r"/large/(.+)": self._store})

    def _answer(self, routes: dict) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        status, found, headers = 404, {"error": f"no {path}"}, {}
        for pattern, handle in routes.items():
            if match := re.fullmatch(pattern, path):
                try:
                    status, found = 200, handle(*match.groups())
                except _Refusal as refusal:
                    status, *more = refusal.args
                    found = more[0] if more and isinstance(more[0], dict) else {"error": f"refused {path}"}
                    headers = {"X-Error-Code": more[0]} if more and isinstance(more[0], str) else {}
                break
        self._send(status, json.dumps(found).encode(), {"Content-Type": "application/json"} | headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_file(self, kind: str | None, name: str, path: str) -> None:
        try:
            files = self._repository(name, "datasets" if kind else "models").branches["main"]
        except _Refusal as refusal:
            self._send(refusal.args[0], b"", {"X-Error-Code": refusal.args[1]})
            return
        if path not in files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = files[path]
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        status = 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self._send(status, content, headers)

    def _check_writer(self, namespace: str) -> None:
        if self.headers.get("Authorization") not in [f"Bearer {token}" for token in self.hub.tokens]:
            raise _Refusal(401)
        if namespace != _OWNER:
            raise _Refusal(403)

    def _repository(self, name: str, kind: str = "models") -> Repository:
        repositories = self.hub.models if kind == "models" else self.hub.datasets
        if name not in repositories:
            raise _Refusal(404, "RepoNotFound")
        if repositories[name].gated:
            raise _Refusal(403, "GatedRepo")
        return repositories[name]

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

    def _info(self, kind: str, name: str, revision: str | None) -> dict:
        repository = self._repository(name, kind)
        siblings = [{"rfilename": path} for path in repository.branches["main"]]
        return {"id": name, "private": repository.private, "sha": COMMIT, "siblings": siblings, "tags": []}

    def _tree(self, kind: str, name: str, revision: str, folder: str | None) -> list[dict]:
        branches = self._repository(name, kind).branches
        files = branches.get(revision, branches["main"])
        prefix = "" if folder is None else f"{folder}/"
        below = {path.removeprefix(prefix): held for path, held in files.items() if path.startswith(prefix)}
        if parse_qs(urlsplit(self.path).query).get("recursive") != ["False"] and "recursive=false" not in self.path:
            return [_entry(prefix + path, held) for path, held in below.items()]
        folders = dict.fromkeys(path.partition("/")[0] for path in below if "/" in path)
        here = [_entry(prefix + path, held) for path, held in below.items() if "/" not in path]
        return [{"type": "directory", "path": prefix + name, "oid": "0" * 40} for name in folders] + here

    def _paths_info(self, kind: str, name: str, revision: str) -> list[dict]:
        files = self._repository(name, kind).branches["main"]
        asked = parse_qs(self.body.decode()).get("paths", [])
        folders = {path.rpartition("/")[0] for path in files}
        found = [{"type": "directory", "path": path, "oid": "0" * 40} for path in asked if path in folders]
        return found + [_entry(path, files[path]) for path in asked if path in files]

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


def _entry(path: str, held: bytes) -> dict:
    return {"type": "file", "path": path, "size": len(held), "oid": hashlib.sha1(held).hexdigest()}
