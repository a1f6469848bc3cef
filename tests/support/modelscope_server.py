"""A local ModelScope: lists of files and files by revision, large ones behind a redirect, as its client asks it."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

OLD, NEW = "b" * 40, "c" * 40


class Handler(BaseHTTPRequestHandler):
    """`server.files` of `server.repo`; `server.fault` chooses what goes wrong."""

    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range")))
        parts, query = urlsplit(self.path), {k: v[0] for k, v in parse_qs(urlsplit(self.path).query).items()}
        place, repo = unquote(parts.path), f"/api/v1/models/{self.server.repo}"
        fault = self.server.fault
        if place.startswith("/cdn/"):
            return self.content(self.server.files[place.removeprefix("/cdn/")])
        if fault == "503":
            return self.reply(503, b"busy")
        if fault == "page":
            return self.reply(200, b"<html>log in</html>")
        known = query.get("Revision", "master") in ("master", OLD, NEW)
        if not (place.startswith(repo) and known):
            return self.reply(404, json.dumps({"Code": 10010205001, "Message": "record not found"}).encode())
        if place == f"{repo}/repo/files":
            files = [self.listed(name, content) for name, content in self.server.files.items()]
            folders = {name.rpartition("/")[0] for name in self.server.files if "/" in name}
            files += [{"Name": f, "Path": f, "Type": "tree", "Size": 0, "Sha256": "", "Revision": NEW} for f in folders]
            answer = {"Code": 200, "Success": True, "Message": "success", "Data": {"Files": files}}
            return self.reply(200, json.dumps(answer).encode())
        if place == f"{repo}/repo" and query.get("FilePath") in self.server.files:
            name = query["FilePath"]
            if name.endswith(".bin"):
                return self.reply(302, b"", {"Location": f"{self.server.url}/cdn/{name}"})
            return self.content(self.server.files[name])
        if place in (repo, f"{repo}/revisions"):
            branches = {"RevisionMap": {"Branches": [{"Revision": "master"}], "Tags": []}}
            return self.reply(200, json.dumps({"Code": 200, "Success": True, "Data": branches}).encode())
        return self.reply(404, b'{"Code": 404}')

    do_HEAD = do_GET

    def listed(self, name: str, content: bytes) -> dict[str, object]:
        """What the list says of a file; config.json changed last."""
        last = name == "config.json"
        return {
            "Name": name.rpartition("/")[2], "Path": name, "Type": "blob", "Size": len(content), "Mode": "33188",
            "Sha256": hashlib.sha256(content).hexdigest(), "IsLFS": name.endswith(".bin"), "InCheck": False,
            "Revision": NEW if last else OLD, "CommittedDate": 1726842501 if last else 1726665606,
        }  # fmt: skip

    def content(self, content: bytes) -> None:
        asked = self.headers.get("Range")
        start = int(asked.split("=")[1].split("-")[0]) if asked else 0
        sent = bytes(len(content)) if self.server.fault == "damaged" else content
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if asked else {}
        if self.server.fault == "cut" and len(content) > 1000:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.reply(206 if asked else 200, sent[start:], headers)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@contextmanager
def serving(repo: str, files: dict[str, bytes]) -> Iterator[Any]:
    """The server on a free port, with `url`, `asked`, `files` and `fault`."""
    server: Any = Server(("127.0.0.1", 0), Handler)
    server.repo, server.files, server.fault, server.asked = repo, files, "", []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
