"""A real local server for tests: ranges, busy, slow, cut and damaged bodies, and the hub's API, read and write."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

from support.hub_repos import COMMIT, JSON, READ_TOKEN, WRITE_TOKEN, HubRepos, is_large, published

__all__ = [
    "COMMIT",
    "CONTENT",
    "HUB_FILES",
    "READ_TOKEN",
    "SHA",
    "WRITE_TOKEN",
    "point_client",
    "published",
    "serving",
    "tree",
]

CONTENT = bytes(range(256)) * 4000
SHA = hashlib.sha256(CONTENT).hexdigest()
HUB_FILES = {"config.json": b'{"a": 1}\n', "weights/model.bin": CONTENT}

PAGE = b"<!DOCTYPE html><title>Log in</title>"
FAULTS = {
    "401": (401, JSON | {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"{}"),
    "bad token": (401, JSON | {"X-Error-Message": "Invalid credentials in Authorization header"}, b"{}"),
    "gated": (403, JSON | {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to org/model is restricted"}, b"{}"),
    "gated files": (403, JSON | {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}, b"{}"),
    "disabled": (
        403,
        JSON | {"X-Error-Code": "DisabledRepo", "X-Error-Message": "Access to this resource is disabled."},
        b"{}",
    ),
    "proxy 403": (403, {"Content-Type": "text/html"}, PAGE),
    "proxy 407": (407, {"Content-Type": "text/html"}, PAGE),
    "404": (404, {"X-Error-Code": "RepoNotFound"}, b""),
    "plain 404": (404, {}, b"nothing here"),
    "429": (429, JSON, b'{"error": "We had to rate limit your IP"}'),
    "500": (500, {}, b"oops"),
    "503": (503, {}, b"busy"),
    "page": (200, {"Content-Type": "text/html"}, PAGE),
    "empty": (200, JSON, b"{}"),
    "list": (200, JSON, b"[]"),
    "deep": (200, JSON, b"[" * 100_000),
    "no json": (200, JSON, b"\xff\xfe"),
}
"""Fault -> (status, headers, body) of every answer of the hub's API."""


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
        if behavior in ("api", "lfs") or "/resolve/" in self.path:
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

    def do_POST(self) -> None:
        self.hub(0)

    def do_PUT(self) -> None:
        self.hub(0)

    def hub(self, start: int) -> None:
        """The hub's protocol; `server.fault` chooses what goes wrong, as hubs, mirrors and proxies do it."""
        fault, api = self.server.fault, "/resolve/" not in self.path
        body = self.body()
        self.server.answered -= 1
        if self.server.answered < 0 < self.server.cuts:
            self.server.cuts -= 1
            self.close_connection = True  # without an answer
            return
        asked = self.headers.get("Authorization")
        self.server.tokens.append(asked)
        token = asked.removeprefix("Bearer ") if asked else None
        method = "GET" if self.command == "HEAD" else self.command
        if fault in FAULTS and api != (fault == "gated files"):
            self.reply(*FAULTS[fault])
        elif api:
            answer = self.server.hub.answer(method, self.path, token, body)
            self.reply(*(answer or (404, {"X-Error-Code": "RepoNotFound"}, b"")))
        else:
            self.file(start, token)

    def body(self) -> bytes:
        """The body of a request, whole or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def file(self, start: int, token: str | None) -> None:
        """A file of a repository at a commit or a branch."""
        fault = self.server.fault
        repo_name, _, rest = unquote(self.path).strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        repo = self.server.hub.repos.get(repo_name)
        if repo is None or (repo.private and token is None):
            return self.reply(401, {"X-Error-Code": "RepoNotFound"}, b"")
        commit = repo.at(revision)
        if commit is None:
            return self.reply(404, {"X-Error-Code": "RevisionNotFound"}, b"")
        if name not in repo.commits[commit]:
            return self.reply(404, {"X-Error-Code": "EntryNotFound"}, b"")
        content = repo.commits[commit][name]
        etag, large = hashlib.sha256(content).hexdigest(), is_large(name)
        sent = bytes(len(content)) if self.server.damaged else content
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
        if large:
            headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        if fault == "short" and self.command == "GET" and large:
            sent = sent[: len(sent) // 2]
        if fault == "endless" and self.command == "GET" and large:
            return self.endless(headers)
        return self.send_from(sent, min(start, len(sent)), pause=self.server.pause, headers=headers)

    def endless(self, headers: dict[str, str]) -> None:
        """A body without an end, at most 400 MB."""
        self.send_response(200)
        for name, value in {**headers, "Transfer-Encoding": "chunked"}.items():
            self.send_header(name, value)
        self.end_headers()
        for _ in range(400):
            self.wfile.write(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
            time.sleep(0.02)

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
    """The server on a free port, with `url`, `asked`, `damaged`, `hub`, and `etags` and `files` by path."""
    server = Server(("127.0.0.1", 0), Handler)
    server.asked, server.damaged, server.files, server.etags, server.pause = [], False, {}, {}, 0.0
    server.fault, server.tokens, server.answered, server.cuts = "", [], 0, 0
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.hub = HubRepos(server.url)
    server.hub.repos["org/model"] = published(HUB_FILES)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def point_client(server: Server, patch: pytest.MonkeyPatch, tmp_path: Path, token: str | None = None) -> None:
    """Let the hub's client in this process ask the server; it has read its environment when it was imported."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_TOKEN"):
        patch.delenv(name, raising=False)
        patch.delenv(name.lower(), raising=False)
    if token:
        patch.setenv("HF_TOKEN", token)
    patch.setenv("VLM_HOME", str(tmp_path / "home"))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    patch.setattr(constants, "ENDPOINT", server.url)
    address = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", server.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)


def tree(folder: Path) -> dict[str, bytes]:
    """Name -> content of every file below a folder; a symbolic link counts as its target's name."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = b"-> " + str(path.readlink()).encode()
        elif path.is_file() and path.name != ".lock":
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found
