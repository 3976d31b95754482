"""A small hub on this machine: the part of its HTTP interface that reading a set of pairs takes."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(root: Path, name: str) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder as the set `name`; gives the address and the list of requests as they come."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def json(self, content: object, status: int = 200) -> None:
            self.answer(json.dumps(content).encode(), status, Content_Type="application/json")

        def entry(self, path: Path) -> dict[str, object]:
            kind = "file" if path.is_file() else "directory"
            oid = hashlib.sha1(str(path).encode()).hexdigest()
            size = path.stat().st_size if kind == "file" else 0
            return {"type": kind, "path": path.relative_to(root).as_posix(), "size": size, "oid": oid}

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            seen.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
            if re.fullmatch(rf"/api/datasets/{name}(/revision/[^/]+)?", path):
                files = [{"rfilename": p.relative_to(root).as_posix()} for p in sorted(root.rglob("*")) if p.is_file()]
                return self.json({"id": name, "sha": SHA, "siblings": files, "private": False, "gated": False,
                                  "disabled": False, "tags": [], "downloads": 0, "likes": 0})  # fmt: skip
            if found := re.fullmatch(rf"/api/datasets/{name}/tree/[^/]+/?(.*)", path):
                folder, deep = root / found[1], "recursive=true" in self.path.lower()
                if not folder.is_dir():
                    return self.missing("EntryNotFound")
                return self.json([self.entry(p) for p in sorted(folder.rglob("*") if deep else folder.iterdir())])
            if found := re.fullmatch(rf"/datasets/{name}/resolve/[^/]+/(.+)", path):
                return self.file(root / found[1])
            return self.missing("RepoNotFound")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            seen.append(f"POST {self.path}")
            if "json" in self.headers.get("Content-Type", ""):
                paths = json.loads(body)["paths"]
            else:
                paths = parse_qs(body).get("paths", [])
            paths = [paths] if isinstance(paths, str) else paths
            self.json([self.entry(root / path) for path in paths if (root / path).exists()])

        def missing(self, code: str) -> None:
            self.answer(b"", 404, X_Error_Code=code)

        def file(self, path: Path) -> None:
            if not path.is_file():
                return self.missing("EntryNotFound")
            data = path.read_bytes()
            headers = {"X_Repo_Commit": SHA, "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept_Ranges": "bytes"}
            if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
                headers["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
                return self.answer(data[first : last + 1], 206, **headers)
            return self.answer(data, **headers)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
