"""A real HTTP server that speaks the OpenAI protocol and answers as a test says."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

import pytest

from vlm.eval.backends.endpoint import Endpoint
from vlm.eval.backends.openai import OpenAIBackend


def chat(content: Any = "yes", reason: str | None = "stop", **message: Any) -> bytes:
    answer = {"role": "assistant", "content": content, **message}
    return json.dumps({"choices": [{"index": 0, "message": answer, "finish_reason": reason}]}).encode()


class Server:
    """Answers by `say(body, number)`: (status, headers, bytes), or None to cut the connection."""

    def __init__(self) -> None:
        self.say: Callable[[dict[str, Any], int], Any] = lambda body, n: (200, {}, chat())
        self.cards: Any = [{"id": "model-1", "created": 1_700_000_000}]
        self.asked: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.times: list[float] = []
        self.busy = self.most_busy = 0
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = server.cards is not None and self.path == "/v1/models"
                fails = server.cards if isinstance(server.cards, int) else 404
                self.reply(200 if known and fails == 404 else fails, {}, json.dumps({"data": server.cards}).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.asked.append({**body, "path": self.path})
                    server.headers.append(self.headers)
                    server.times.append(time.monotonic())
                    number = len(server.asked)
                    server.busy += 1
                    server.most_busy = max(server.busy, server.most_busy)
                said = server.say(body, number)
                with lock:
                    server.busy -= 1
                if said is None:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    self.connection.close()  # a reset, not an end
                    self.wfile = BytesIO()  # type: ignore[assignment]
                    return
                self.reply(*said)

            def reply(self, status: int, headers: dict[str, str], data: bytes) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        class Http(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass  # clients that gave up waiting

        self.http = Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def endpoint(self, **settings: Any) -> Endpoint:
        return Endpoint(self.url, **{"wait": 0.01, "timeout": 5.0, "attempts": 3, **settings})

    def backend(self, concurrency: int = 4, **settings: Any) -> OpenAIBackend:
        return OpenAIBackend(self.endpoint(**settings), concurrency=concurrency)

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.stop()
