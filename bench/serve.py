"""`vlm serve` under load, and beside `transformers serve` with the same weights and requests; all over HTTP.

Needs `vlm download smollm2-135m-instruct`. The model is SmolLM2-135M-Instruct behind a small image encoder, so replies
are English and have nothing to do with the picture; speed does not depend on that. Both servers run on one thread.
Each case is measured in turn, several times; `cpu` is the time that the server's process has computed, which other
programs on the machine hardly change, and `wall` is what a client waits. `python bench/serve.py` measures all rows and
writes bench/serve.json.
"""

import argparse
import base64
import io
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil
from harness import report
from PIL import Image

from vlm.core.home import home, pretrained
from vlm.models.checkpoint.assemble import assemble, export_gguf_tokenizer
from vlm.models.checkpoint.convert import convert
from vlm.models.specs import load_preset

CLIENTS, NEW, RUNS = 8, 48, 3
numbers = count()


def make_weights() -> tuple[Path, Path]:
    """Make the model, ours and as `-hf`, where it is missing."""
    ours, hf = (pretrained() / name for name in ("bench-serve", "bench-serve-hf"))
    language = pretrained() / "smollm2-135m-instruct"
    tiny, smol = load_preset("tiny-internvl2"), load_preset("smol-v2pe")
    vision = {"width": 192, "depth": 6, "heads": 3, "mlp_width": 768, "image_size": 224}
    changes = {name: getattr(smol, name) for name in ("language", "template", "system", "image_tokens")}
    changes |= {"vision": tiny.vision.model_copy(update=vision), "image_rule": tiny.image_rule.changed(size=224)}
    if not ours.exists():
        tokenizer = pretrained() / "bench-serve-tokenizer"
        tokenizer.mkdir(parents=True, exist_ok=True)
        export_gguf_tokenizer(language, tokenizer)
        assemble(tiny.model_copy(update=changes), tokenizer=tokenizer, language=language).write(ours)
    if not hf.exists():
        convert(ours, "hf", hf)
    return ours, hf


class Reply(NamedTuple):
    """What a client saw: seconds to the first token and to the last, tokens, text."""

    first: float
    seconds: float
    tokens: int
    text: str


class Server:
    """A server in a process of its own."""

    def __init__(self, model: str, process: "subprocess.Popen[bytes]", port: int):
        self.model, self.process, self.url = model, psutil.Process(process.pid), f"http://127.0.0.1:{port}/v1"

    def cpu(self) -> float:
        """Return the seconds that it has computed."""
        times = self.process.cpu_times()
        return times.user + times.system

    def ask(self, words: str, new: int, *, picture: bool = False) -> Reply:
        """Ask one question, greedily, streamed."""
        content: Any = words
        if picture:
            pixels = np.random.default_rng(len(words)).integers(0, 256, (7, 7, 3), np.uint8)
            out = io.BytesIO()
            Image.fromarray(pixels).resize((224, 224)).save(out, "PNG")
            url = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": words}]
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "max_tokens": new}
        body |= {"temperature": 0.0, "stream": True, "stream_options": {"include_usage": True}}
        start, first, tokens, text = time.perf_counter(), None, 0, ""
        with httpx.stream("POST", f"{self.url}/chat/completions", json=body, timeout=3600) as got:
            got.raise_for_status()
            for line in got.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                tokens = (event.get("usage") or {}).get("completion_tokens") or tokens
                piece = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
                first = first or (time.perf_counter() - start if piece else None)
                text += piece
        return Reply(first or 0.0, time.perf_counter() - start, tokens, text)

    def crowd(self, questions: Sequence[str], *, at_once: bool = True) -> dict[str, float]:
        """Ask all, at once or one after the other; return tokens, and tokens for each second, wall and cpu."""
        replies: list[Reply] = []
        threads = [
            threading.Thread(target=lambda q=q: replies.append(self.ask(q, NEW, picture=True))) for q in questions
        ]
        before, start = self.cpu(), time.perf_counter()
        for thread in threads:
            thread.start()
            if not at_once:
                thread.join()
        for thread in threads:
            thread.join()
        tokens, wall, cpu = sum(r.tokens for r in replies), time.perf_counter() - start, self.cpu() - before
        return {"tokens": tokens, "wall": tokens / wall, "cpu": tokens / cpu}


@contextmanager
def running(command: list[str], model: str, port: int) -> Iterator[Server]:
    """Start a server, wait until it has answered once, and end it."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            server = Server(model, process, port)
            while True:
                try:
                    server.ask("Hello.", 2, picture=True)
                    break
                except httpx.TransportError:
                    if process.poll() is not None:
                        raise
                    time.sleep(0.5)
            yield server
        finally:
            process.terminate()


def questions(n: int = CLIENTS) -> list[str]:
    """Return questions that nobody has asked yet; they differ from the first word on."""
    return [f"{next(numbers)} pictures were taken. Describe this one in many words." for _ in range(n)]


def document(words: int) -> str:
    """Return a text that nobody has sent yet."""
    return f"{next(numbers)}. " + "The quick brown fox jumps over the lazy dog. " * (words // 9)


def median_of(
    pairs: list[tuple[dict[str, float], dict[str, float]]], names: tuple[str, str], case: str
) -> dict[str, Any]:
    """Return a row: medians of both sides, and of the ratios of the pairs, first to second."""
    row: dict[str, Any] = {"case": case, "runs": len(pairs)}
    for key in pairs[0][0]:
        for side, name in enumerate(names):
            row[f"{name}_{key}"] = statistics.median(pair[side][key] for pair in pairs)
        if key != "tokens":
            row[f"{key}_ratio"] = statistics.median(a[key] / b[key] for a, b in pairs)
    return row


def against_itself(ours: Server, runs: int) -> Iterator[dict[str, Any]]:
    """Measure a crowd, a cached document, and a short request beside a long one."""
    pairs = [(ours.crowd(questions()), ours.crowd(questions(), at_once=False)) for _ in range(runs)]
    yield median_of(pairs, ("at_once", "in_turn"), f"tokens/s, {CLIENTS} clients at once or in turn")
    pairs = []
    for _ in range(runs):
        text = document(1500)
        sides = []
        for question in ("What jumps?", "Who is lazy?"):
            before = ours.cpu()
            sides.append({"wall": ours.ask(text + question, 1).seconds, "cpu": ours.cpu() - before})
        pairs.append((sides[1], sides[0]))
    yield median_of(pairs, ("cached", "first"), "s to the first token of a document of 1,700 tokens")
    pairs = []
    for _ in range(runs):
        alone = ours.ask(f"{next(numbers)}: hello", 8).seconds
        long = threading.Thread(target=ours.ask, args=(document(2500), 1))
        long.start()
        time.sleep(1.0)
        beside = ours.ask(f"{next(numbers)}: hello", 8).seconds
        assert long.is_alive()
        long.join()
        pairs.append(({"wall": beside}, {"wall": alone}))
    yield median_of(pairs, ("beside", "alone"), "s of a short request, beside a long one or alone")


def against_transformers(ours: Server, theirs: Server, runs: int) -> Iterator[dict[str, Any]]:
    """Measure a crowd and a lone client at both servers with the same requests."""
    pairs = []
    for _ in range(runs):
        asked = questions()
        pairs.append((ours.crowd(asked), theirs.crowd(asked)))
    yield median_of(pairs, ("ours", "theirs"), f"tokens/s, {CLIENTS} clients at once")
    pairs, same = [], 0
    for _ in range(3 * runs):
        (question,) = questions(1)
        sides = []
        for server in (ours, theirs):
            before = server.cpu()
            reply = server.ask(question, 1, picture=True)
            sides.append(({"wall": reply.first, "cpu": server.cpu() - before}, reply.text))
        same += sides[0][1] == sides[1][1]
        pairs.append((sides[0][0], sides[1][0]))
    yield {**median_of(pairs, ("ours", "theirs"), "s to the first token, one client"), "equal_replies": same}


def main() -> None:
    """Measure and write bench/serve.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=["transformers", "itself"], metavar="transformers|itself")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--port", type=int, default=18301)
    options = parser.parse_args()
    weights, hf = make_weights()
    bin_, port, rows = Path(sys.executable).parent, options.port, []
    ours = [str(bin_ / "vlm"), "serve", "-m", f"m={weights}", "--device", "cpu", "--port", str(port)]
    theirs = [str(bin_ / "transformers"), "serve", str(hf), "--device", "cpu", "--dtype", "float32"]
    print(f"models below {home()}")
    with running(ours, "m", port) as mine:
        if "transformers" in options.parts:
            with running([*theirs, "--port", str(port + 1)], str(hf), port + 1) as other:
                rows += shown(against_transformers(mine, other, options.runs))
        if "itself" in options.parts:
            rows += shown(against_itself(mine, options.runs))
    report("serve", rows)


def shown(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print each row as soon as it is measured; return all."""
    return [row for row in rows if print(row, flush=True) is None]


if __name__ == "__main__":
    main()
