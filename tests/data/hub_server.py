"""A hub of one machine: it answers what huggingface_hub asks about the data sets of a mirror's folder."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0ff"
TOKEN = "hf_right"


class _Handler(BaseHTTPRequestHandler):
    mirror: Path
    gated: str | None
    asked: list[str]

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
        match path.strip("/").split("/"):
            case ["api", "datasets", owner, name, *rest]:
                self.about(f"{owner}/{name}", rest)
            case ["datasets", owner, name, "resolve", _, *file]:
                self.file(f"{owner}/{name}", self.mirror / owner / name / "/".join(file))

    def log_message(self, *_):
        pass

    def about(self, name: str, rest: list[str]) -> None:
        root = self.mirror / name
        if rest[0] == "revision":
            self.send(200, {"Content-Type": "application/json"}, json.dumps({"id": name, "sha": COMMIT}))
            return
        found = sorted(path for path in (root / "/".join(rest[2:])).rglob("*") if path.is_file())
        entries = [
            {
                "type": "file",
                "path": path.relative_to(root).as_posix(),
                "size": path.stat().st_size,
                "oid": digest(path),
            }
            for path in found
        ]
        self.send(200, {"Content-Type": "application/json"}, json.dumps(entries))

    def file(self, name: str, path: Path) -> None:
        if name == self.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"})
        else:
            self.send(200, {"ETag": f'"{digest(path)}"', "X-Repo-Commit": COMMIT}, path.read_bytes())

    def send(self, status: int, headers: dict[str, str], data: str | bytes = b"") -> None:
        data = data.encode() if isinstance(data, str) else data
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@contextmanager
def hub_of(mirror: Path, gated: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """Yields the address, and what is asked for. ``gated``: a set whose files want the token."""
    asked: list[str] = []
    handler = type("Handler", (_Handler,), {"mirror": mirror, "gated": gated, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
