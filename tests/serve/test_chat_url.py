"""`vlm chat --url`: the answers of `vlm chat -m`, from a server; and every way in which a server can fail it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

from support.videos import write_video
from vlm.cli import main as command
from vlm.cli.remote import RemoteSession
from vlm.core.errors import ConfigError, DataError, FetchError, MediaError, UnknownName
from vlm.models.answers import answer
from vlm.models.session import user_turn

SHORT = {"max_tokens": 6, "temperature": 0.0}


@pytest.fixture
def chat(server):
    return RemoteSession(f"{server.url}/v1")


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    for name, color in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (60, 40), color).save(tmp_path / name)
    return [tmp_path / "a.png", tmp_path / "b.png"]


def said(chat, question, **files):
    return "".join(chat.stream(question, **files, **SHORT)).strip()


def test_it_says_what_the_checkpoint_says(chat, parts, pictures, tmp_path):
    model, processor = parts
    video = write_video(tmp_path / "clip.mp4", range(0, 240, 20))
    processor = processor.with_frames(3)
    chat.own, chat.frames = {"frames": 3}, 3
    for images, videos in (([], []), (pictures[:1], []), (pictures, []), ([], [video]), (pictures[:1], [video])):
        chat.reset()
        turn = user_turn("What is it?", images, videos, processor.template)
        wanted = answer(model, processor, [processor.encode([turn])], max_new_tokens=6)[0].text
        assert said(chat, "What is it?", images=images, videos=videos) == wanted.strip(), (images, videos)


def test_a_conversation_goes_on_and_a_broken_turn_is_not_part_of_it(chat, parts, pictures):
    model, processor = parts
    said(chat, "What is it?", images=pictures)
    with pytest.raises(DataError, match=r"answered 400: .*4,096"):
        said(chat, "word " * 5000)
    pieces = chat.stream("Tell me more.", max_tokens=200, temperature=0.0)
    next(pieces)
    pieces.close()
    assert len(chat.history) == 2
    turns = [user_turn("What is it?", pictures, [], processor.template), chat.history[1]]
    prompt = processor.encode([*turns, user_turn("And now?", [], [], processor.template)])
    wanted = answer(model, processor, [prompt], max_new_tokens=6)[0].text
    assert said(chat, "And now?") == wanted.strip() and len(chat.history) == 4


def test_a_draw_is_repeated_by_its_seed(chat):
    drawn = {"max_tokens": 8, "temperature": 1.0, "seed": 4}
    replies = []
    for _ in range(2):
        chat.reset()
        replies.append("".join(chat.stream("Say something.", **drawn)))
    assert replies[0] == replies[1]


def test_files_that_cannot_be_sent(chat, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "frames").mkdir()
    with pytest.raises(MediaError, match=r"broken\.png"):
        said(chat, "What?", images=[tmp_path / "broken.png"])
    with pytest.raises(DataError, match="cannot be sent as a video"):
        said(chat, "What?", videos=[tmp_path / "frames"])
    with pytest.raises(ConfigError, match="the question is empty"):
        said(chat, " ")
    assert chat.history == []


def test_the_command_asks_the_server(server, pictures, monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr("sys.argv", ["vlm", "chat", *words])
        with pytest.raises(SystemExit) as stop:
            command.main()
        return stop.value.code or 0, *capsys.readouterr()

    ask = ("--url", f"{server.url}/v1", str(pictures[0]), "What is it?", "--max-new-tokens", "4")
    code, out, err = run(*ask)
    assert code == 0 and out.count("\n") == 1 and out.strip() and not err
    before, prepare = server.served.engine.counts["prompt_tokens"], server.served.prepare
    asked = []
    monkeypatch.setattr(server.served, "prepare", lambda request: asked.append(request.vlm) or prepare(request))
    assert run(*ask, "--stride", "1/16", "-m", "tiny", "--max-tiles", "2")[0] == 0  # an increment of a token, of four
    assert (asked[0].strides, asked[0].max_tiles) == (0.25, 2)
    assert server.served.engine.counts["prompt_tokens"] > before
    for wrong, found in (
        (("--beams", "2"), "--url with --beams"),
        (("--device", "cpu"), "a place for weights"),
        (("--combine",), "--combine"),
        (("-m", "nobody"), "unknown model 'nobody'"),
    ):
        code, out, err = run(*ask, *wrong)
        assert code and found in err and not out and "Traceback" not in err
    code, _, err = run("--url", "http://127.0.0.1:9/v1", "Why?")
    assert code and "http://127.0.0.1:9/v1 does not answer" in err


def test_a_key_is_sent_and_its_absence_explained(start, monkeypatch):
    server = start(api_key="secret")
    with pytest.raises(FetchError, match="VLM_API_KEY"):
        RemoteSession(f"{server.url}/v1")
    assert said(RemoteSession(f"{server.url}/v1", "secret"), "Hi")
    for key in ("sécret", "secret\n"):
        with pytest.raises(ConfigError, match="the key of the server has") as error:
            RemoteSession(f"{server.url}/v1", key)
        assert "cret" not in str(error.value)


class Foreign(BaseHTTPRequestHandler):
    """A server of another make: one model, a stream that `said` holds, and the requests that came."""

    said: bytes = b""
    status = 200
    asked: ClassVar[list[dict]] = []

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer(200, json.dumps({"object": "list", "data": [{"id": "m"}, {"id": "n"}]}).encode())

    def do_POST(self):
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.answer(self.status, self.said)

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("Retry-After", "7")
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def foreign():
    Foreign.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Foreign) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/v1"
        httpd.shutdown()


def event(text="", reason=None):
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


def test_a_server_of_another_make_gets_plain_parts(foreign, pictures, tmp_path):
    with pytest.raises(ConfigError, match="lists 2"):
        RemoteSession(foreign)
    with pytest.raises(UnknownName):
        RemoteSession(foreign, model="q")
    with pytest.raises(ConfigError, match="strides for a server that is not"):
        RemoteSession(foreign, model="m", own={"strides": 1.0})
    chat = RemoteSession(foreign, model="m", system="Be brief.", frames=2)
    Foreign.status, Foreign.said = 200, event("A ") + event("cat.") + event("", "stop") + b"data: [DONE]\n\n"
    assert (
        said(chat, "What?", images=pictures[:1], videos=[write_video(tmp_path / "clip.mp4", range(0, 240, 20))])
        == "A cat."
    )
    (body,) = Foreign.asked
    kinds = [part["type"] for part in body["messages"][1]["content"]]
    assert body["messages"][0]["role"] == "system" and kinds.count("image_url") == 3 and "vlm" not in body


@pytest.mark.parametrize(
    ("status", "answer", "found"),
    [
        (200, event("half an ans"), "broke off in the middle"),
        (200, b"data: <html>\n\n", "no JSON"),
        (200, b"", "broke off"),
        (200, b'data: {"error": {"message": "out of memory"}}\n\n', "out of memory"),
        (400, b'{"error": {"message": "too long"}}', "answered 400: too long"),
        (401, b"{}", "VLM_API_KEY"),
        (429, b'{"error": {"message": "busy"}}', r"ask again in 7 s"),
        (500, b"<html>oops</html>", "answered 500"),
    ],
)
def test_a_server_that_fails_is_said_and_the_turn_is_not_kept(foreign, status, answer, found):
    chat = RemoteSession(foreign, model="m")
    Foreign.status, Foreign.said = status, answer
    with pytest.raises((FetchError, DataError), match=found):
        said(chat, "What?")
    assert chat.history == []
