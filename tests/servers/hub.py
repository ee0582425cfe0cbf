"""A Hugging Face hub with one gated repository: what its client needs of one, and a list of what was asked."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

REPOSITORY, COMMIT, TOKEN = "acme/gated", "c0ffee" + "0" * 34, "hf_a-token-that-only-the-control-side-sees"


@dataclass
class Hub:
    """`files` are those of the one repository; `asked` grows by "METHOD path"."""

    files: dict[str, bytes]
    url: str = ""
    asked: list[str] = field(default_factory=list)

    @property
    def downloads(self) -> list[str]:
        return [line.rpartition("/")[2] for line in self.asked if line.startswith("GET") and "/resolve/" in line]


@contextmanager
def running(directory: Path) -> Iterator[Hub]:
    hub = Hub({path.name: path.read_bytes() for path in directory.iterdir()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            error = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted"}
            self._answer(401, b'{"error": "restricted"}', error)
            return
        for prefix in (f"/api/models/{REPOSITORY}/revision/{COMMIT}", f"/api/models/{REPOSITORY}/revision/main"):
            if path == prefix:
                self._json({"id": REPOSITORY, "sha": COMMIT, "siblings": [{"rfilename": n} for n in self.hub.files]})
                return
        if path.startswith(f"/api/models/{REPOSITORY}/tree/"):
            self._json([self._entry(name, content) for name, content in self.hub.files.items()])
            return
        name = path.removeprefix(f"/{REPOSITORY}/resolve/{COMMIT}/")
        if name not in self.hub.files:
            self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        content = self.hub.files[name]
        etag = self._entry(name, content).get("lfs", {}).get("oid") or self._entry(name, content)["oid"]
        self._answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET  # noqa: N815 - the name is what the standard library looks for

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def _entry(self, name: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": _git_hash(content)}
        if name.endswith(".safetensors"):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
        return entry

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
