"""A small model hub on this machine: the calls that huggingface_hub makes to create, fill and fetch a repository.

It keeps what it is sent, so that a test can read it back: `Hub.repositories` and `Hub.calls`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlparse

TOKEN = "hf_" + "a" * 34


@dataclass
class Repository:
    """One model: who may see it, and its files."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def commit(self) -> str:
        digest = hashlib.sha1()
        for name, content in sorted(self.files.items()):
            digest.update(name.encode() + content)
        return digest.hexdigest()


@dataclass
class Hub:
    """The server's state."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    readers_only: set[str] = field(default_factory=set)
    objects: dict[str, bytes] = field(default_factory=dict)


class Handler(BaseHTTPRequestHandler):
    """Answers as the real hub does, as far as uploads and downloads of models go."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    # -- what comes in and goes out

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, status: int, value: Any, **headers: str) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})

    def _deny(self, status: int, code: str, text: str) -> None:
        self._json(status, {"error": text}, **{"X-Error-Code": code, "X-Error-Message": text})

    def _allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    # -- the calls

    def do_POST(self) -> None:
        path, body = urlparse(self.path).path, self._body()
        self.hub.calls.append(f"POST {path}")
        if not self._allowed():
            return self._deny(401, "", "Invalid username or password.")
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._json(200, {"errors": [], "warnings": []})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        name, action = "/".join(parts[2:4]), parts[4]
        if action == "preupload":
            files = [
                {"path": f["path"], "shouldIgnore": False, "oid": None,
                 "uploadMode": "lfs" if f["path"].endswith((".safetensors", ".png")) else "regular"}
                for f in json.loads(body)["files"]
            ]  # fmt: skip
            return self._json(200, {"files": files})
        if action == "commit":
            return self._commit(name, body)
        return self._deny(404, "", f"no such call: {path}")

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] in self.hub.readers_only:
            return self._deny(403, "", "You don't have the rights to create a model under this namespace")
        if name in self.hub.repositories:
            known = {"error": "You already created this model repo", "url": f"{self.hub.address}/{name}"}
            return self._json(409, known)
        # Older clients say `private`, newer ones `visibility`.
        self.hub.repositories[name] = Repository(bool(asked.get("private")) or asked.get("visibility") == "private")
        return self._json(200, {"url": f"{self.hub.address}/{name}", "name": name, "id": name})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {"oid": o["oid"], "size": o["size"], "authenticated": True,
             "actions": {"upload": {"href": f"{self.hub.address}/store/{o['oid']}"}}}
            for o in asked["objects"]
        ]  # fmt: skip
        self._send(
            200, json.dumps({"transfer": "basic", "objects": objects}).encode(),
            {"Content-Type": "application/vnd.git-lfs+json"},
        )  # fmt: skip

    def _commit(self, name: str, body: bytes) -> None:
        repository = self.hub.repositories[name]
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repository.messages.append(value["summary"])
            elif line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del repository.files[value["path"]]
        address = f"{self.hub.address}/{name}/commit/{repository.commit}"
        self._json(200, {"commitUrl": address, "commitOid": repository.commit, "pullRequestUrl": None})

    def do_PUT(self) -> None:
        path, body = urlparse(self.path).path, self._body()
        self.hub.calls.append(f"PUT {path}")
        oid = path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid, "another content than was announced"
        self.hub.objects[oid] = body
        self._send(200)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        self.hub.calls.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._allowed()):
            return self._deny(404, "RepoNotFound", "Repository not found")
        if parts[0] != "api":  # /USER/NAME/resolve/REVISION/FILE
            content = repository.files.get("/".join(parts[4:]))
            if content is None:
                return self._deny(404, "EntryNotFound", "Entry not found")
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self._send(200, content, {"ETag": etag, "X-Repo-Commit": repository.commit})
        if "tree" in parts:
            files = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in repository.files.items()
            ]
            return self._json(200, files)
        siblings = [{"rfilename": path} for path in repository.files]
        facts = {"id": name, "modelId": name, "private": repository.private, "sha": repository.commit}
        return self._json(200, {**facts, "siblings": siblings, "tags": [], "downloads": 0})


@contextmanager
def running() -> Iterator[Hub]:
    """A hub at ``hub.address`` while the block runs."""
    hub = Hub()
    handler = type("HandlerOfThisHub", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

