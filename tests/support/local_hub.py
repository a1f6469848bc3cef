"""A real local server for download tests: ranges, busy, slow, cut and damaged bodies, and enough of the hub's API."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CONTENT = bytes(range(256)) * 4000
SHA = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "a" * 40
HUB_FILES = {"config.json": b'{"a": 1}\n', "weights/model.bin": CONTENT}


class Handler(BaseHTTPRequestHandler):
    """The first part of the path chooses the behavior; `server.asked` notes (path, Range)."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        behavior = self.path.split("/")[1]
        start = int(asked.split("=")[1].split("-")[0]) if asked and behavior != "norange" else 0
        etag = self.server.etags.get(self.path)
        if self.headers.get("If-Range") not in (None, etag):
            start = 0
        seen = [p for p, _ in self.server.asked].count(self.path)
        if behavior in ("api", "org"):
            self.hub(start)
        elif behavior in ("429", "503") and seen < 3:
            self.reply(int(behavior), {"Retry-After": "0", "Content-Length": "0"}, b"")
        elif behavior in ("404", "403"):
            self.reply(int(behavior), {"Content-Length": "0"}, b"")
        elif behavior == "corrupt":
            self.send_from(bytes(len(CONTENT)), start)
        elif behavior in ("truncated", "norange") and seen < 3:
            self.send_from(CONTENT, start, stop=start + 300_000 if behavior == "truncated" else 200_000 * seen)
        elif behavior == "slow":
            self.send_from(CONTENT, start, pause=0.05)
        elif behavior == "file":
            tag = {"ETag": etag} if etag else {}
            self.send_from(self.server.files[self.path], start, pause=self.server.pause, headers=tag)
        else:
            self.send_from(CONTENT, start)

    def hub(self, start: int) -> None:
        name = self.path.split(f"/resolve/{COMMIT}/")[-1]
        if self.path.startswith("/api/") and COMMIT not in self.path:
            self.reply(404, {"X-Error-Code": "RevisionNotFound"}, b"")
        elif self.path.startswith("/api/models/org/model/revision/"):
            siblings = [{"rfilename": n, "size": len(c)} for n, c in HUB_FILES.items()]
            body = {
                "id": "org/model",
                "sha": COMMIT,
                "siblings": siblings,
                "private": False,
                "downloads": 0,
                "tags": [],
            }
            self.reply(200, {"Content-Type": "application/json"}, json.dumps(body).encode())
        elif self.path.startswith("/api/models/org/model/tree/"):
            tree = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in HUB_FILES.items()]
            self.reply(200, {"Content-Type": "application/json"}, json.dumps(tree).encode())
        elif name in HUB_FILES:
            content = HUB_FILES[name]
            etag = hashlib.sha256(content).hexdigest()
            wrong = bytes(len(content)) if self.server.damaged else content
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
            self.send_from(wrong, start, pause=self.server.pause, headers=headers)
        else:
            self.reply(404, {"X-Error-Code": "EntryNotFound"}, b"")

    def send_from(self, content: bytes, start: int, stop: int | None = None, pause: float = 0.0, headers=None) -> None:
        self.send_response(206 if start else 200)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        for at in range(start, stop or len(content), 50_000):
            self.wfile.write(content[at : min(at + 50_000, stop or len(content))])
            time.sleep(pause)
        self.close_connection = True

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients are killed on purpose


@contextmanager
def serving() -> Iterator[Server]:
    """The server on a free port, with `url`, `asked`, `damaged`, and `etags` and `files` by path."""
    server = Server(("127.0.0.1", 0), Handler)
    server.asked, server.damaged, server.files, server.etags, server.pause = [], False, {}, {}, 0.0
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def tree(folder: Path) -> dict[str, bytes]:
    """Name -> content of every file below a folder; a symbolic link counts as its target's name."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = b"-> " + str(path.readlink()).encode()
        elif path.is_file() and path.name != ".lock":
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found
