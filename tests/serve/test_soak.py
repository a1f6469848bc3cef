"""Many requests of mixed kinds, some broken, some cancelled: each is answered or refused by name; memory stays flat."""

import base64
import io
import json
import random
import threading
import time
from collections import Counter
from pathlib import Path
from queue import Empty, SimpleQueue

import httpx
import psutil
import pytest
from PIL import Image

from support.live_server import WAIT, ServeProcess
from support.videos import write_video
from vlm.models.checkpoint.assemble import build
from vlm.models.checkpoint.load import save_model
from vlm.models.specs import load_preset

TOKENIZER = Path(__file__).parents[1] / "golden" / "data" / "tokenizers" / "internlm2"
CLIENTS = 8


def data(kind, content):
    return {"url": f"data:{kind};base64,{base64.b64encode(content).decode()}"}


class Mixture:
    """Requests by their number: the same number is the same request."""

    def __init__(self, folder):
        self.video = write_video(folder / "clip.mp4", range(0, 200, 20)).read_bytes()

    def picture(self, rng):
        out = io.BytesIO()
        size = rng.choice([(40, 40), (200, 40), (120, 90)])
        Image.new("RGB", size, (rng.randrange(4) * 60, rng.randrange(4) * 60, 30)).save(out, "PNG")
        return {"type": "image_url", "image_url": data("image/png", out.getvalue())}

    def request(self, number):
        """Return how a request is sent (`whole`, `stream`, `leave`), what must come of it, and its body."""
        rng = random.Random(number)
        text = {"type": "text", "text": rng.choice(["What is it? ", "word ", "<image> "]) * rng.choice([1, 3, 60])}
        content = rng.choice(
            [
                [text],
                [self.picture(rng), text],
                [self.picture(rng), self.picture(rng), text],
                [{"type": "text", "text": "A long document. " * 60}, text],
                [{"type": "video_url", "video_url": data("video/mp4", self.video)}, text],
            ]
        )
        body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": rng.randint(1, 12)}
        body |= rng.choice([{}, {"n": 2}, {"logprobs": True}, {"temperature": 1.0, "seed": 1}, {"stop": "a"}])
        body |= rng.choice([{}, {}, {"vlm": {"strides": 0.5}}, {"vlm": {"strides": None, "max_tiles": 2}}])
        how, wanted = rng.choice(["whole", "stream"]), 200
        if number % 20 == 7:
            how, wanted, body = "whole", 400, body | self.fault(rng, content)
        elif number % 20 == 13:
            how, body = "leave", body | {"max_tokens": 500}
        return how, wanted, body

    def fault(self, rng, content):
        broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,@@@"}}
        half = {"type": "image_url", "image_url": data("image/png", b"\x89PNG\r\n\x1a\n" + bytes(50))}
        return rng.choice(
            [
                {"messages": [{"role": "user", "content": [broken, *content]}]},
                {"messages": [{"role": "user", "content": [*content, half]}]},
                {"messages": []},
                {"max_tokens": -1},
                {"max_tokens": 10**6},
                {"tools": [{"type": "function"}]},
                {"vlm": {"strides": -1}},
            ]
        )


def outcome(url, how, wanted, body):
    """What came of a request: `answered`, `refused`, `left`, or what was wrong."""
    address = f"{url}/v1/chat/completions"
    if how == "whole":
        got = httpx.post(address, json=body, timeout=WAIT)
        if got.status_code == wanted == 200:
            return "answered" if got.json()["choices"][0]["finish_reason"] in ("stop", "length") else got.text
        error = got.json().get("error", {})
        return "refused" if got.status_code == wanted and error.get("message") and error.get("type") else got.text[:300]
    with httpx.stream("POST", address, json=body | {"stream": True}, timeout=WAIT) as got:
        if got.status_code != 200:
            return got.read().decode()[:300]
        lines = []
        for line in got.iter_lines():
            lines += [line] if line else []
            if how == "leave" and len(lines) > 2:
                return "left"
    ended = lines[-1] == "data: [DONE]" and not any("error" in json.loads(line[6:]) for line in lines[:-1])
    return "answered" if ended else str(lines[-1])[:300]


def send(url, mixture, numbers, *, watch=lambda done: None):
    """Send the requests from eight clients; return how many had which outcome."""
    waiting, found, lock = SimpleQueue(), Counter(), threading.Lock()
    for number in numbers:
        waiting.put(number)

    def work():
        while True:
            try:
                number = waiting.get_nowait()
            except Empty:
                return
            try:
                what = outcome(url, *mixture.request(number))
            except Exception as error:  # noqa: BLE001  (it is an outcome, and fails the test)
                what = f"{type(error).__name__}: {error}"
            with lock:
                found[what] += 1
                watch(found.total())

    clients = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return found


def test_a_mixture_of_requests_is_answered_or_refused_by_name(server, tmp_path):
    numbers = range(80)
    found = send(server.url, Mixture(tmp_path), numbers)
    assert set(found) == {"answered", "refused", "left"}, found
    assert found["refused"] == found["left"] == 4 and found.total() == len(numbers)
    deadline = time.monotonic() + WAIT
    engine = server.served.engine
    while (engine.running or engine.waiting) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not engine.running and not engine.waiting  # those whose clients left have ended
    assert not list(server.served.uploads.folder.glob("tmp*"))  # no request leaves its files behind


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_thousand_requests_and_memory_is_flat_after_the_first_two_hundred(tmp_path):
    folder = tmp_path / "tiny"
    save_model(build(load_preset("tiny-internvl2"), tokenizer=TOKENIZER, seed=1), folder, tokenizer=TOKENIZER)
    server = ServeProcess(tmp_path, folder, "--port", "0", "--cache-gb", "0.02")
    try:
        process, memory = psutil.Process(server.process.pid), {}

        def watch(done):
            if done % 200 == 0:
                memory[done] = process.memory_info().rss / 2**20

        found = send(server.url, Mixture(tmp_path), range(2000), watch=watch)
        print(dict(found), {done: round(mb) for done, mb in memory.items()})
        assert set(found) == {"answered", "refused", "left"}, found
        assert found["refused"] == found["left"] == 100 and found.total() == 2000
        assert max(memory.values()) < memory[200] * 1.1 + 20
        assert not any("Traceback" in line for line in server.lines)
    finally:
        server.kill()
