"""A judge behind a real HTTP server, and items for it to judge."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from vlm.eval.backends.judge import Judge
from vlm.eval.loaders import Item


class JudgeServer:
    """An OpenAI-compatible endpoint; `replies` are (status, content or raw body), the last one is repeated."""

    def __init__(self) -> None:
        self.replies: list[tuple[int, Any]] = [(200, "0.8")]
        self.asked: list[dict[str, Any]] = []
        self.headers: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append({**body, "path": self.path})
                server.headers.append(self.headers["Authorization"])
                status, content = server.replies[0] if len(server.replies) == 1 else server.replies.pop(0)
                message = {"choices": [{"message": {"role": "assistant", "content": content}}]}
                data = content if isinstance(content, bytes) else json.dumps(message).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def judge(self, cache: Path, **settings: Any) -> Judge:
        return Judge(self.url, "judge-1", cache=cache, wait=0.001, **settings)


def vet(gold: str = "a red circle") -> Item:
    return Item("v1_0", [], gold, "all", {"question": "What is in the\npicture?", "capability": ["rec"]})


def math(choices: list[str] | None = None, form: str = "text", gold: str = "Bo") -> Item:
    kind = "multi_choice" if choices else "free_form"
    meta = {"choices": choices, "question_type": kind, "answer_type": form, "precision": 1.0}
    message = {"role": "user", "content": [{"type": "image", "path": "x"}, {"type": "text", "text": "Which bar?"}]}
    return Item("1", [message], gold, "testmini", meta)
