"""The OpenAI-compatible backend against a real HTTP server: what is sent, what comes back, and every way of failing."""

import base64
import json
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support import openai_server as fake
from vlm.core.errors import ConfigError, MediaError, UnknownName
from vlm.core.sample.media import load_image
from vlm.core.sample.records import image, text, video
from vlm.eval.backends.base import Refused, TooLong
from vlm.eval.backends.endpoint import Endpoint, Nonsense, Unanswered
from vlm.eval.backends.openai import OpenAIBackend, ServerDown
from vlm.eval.backends.parts import image_bytes
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import load_items
from vlm.eval.mini import make_mini
from vlm.eval.run.runner import Options, run_evaluation

chat, server, Server = fake.chat, fake.server, fake.Server


@pytest.fixture(scope="module")
def pope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mini("POPE", tmp_path_factory.mktemp("mini") / "pope", n=4)


TABLE = load_benchmark("POPE")


def evaluated(server: Server, data: Path, out: Path, **settings: Any) -> tuple[Any, list[dict[str, Any]]]:
    """The summary and the rows of a run on POPE."""
    backend = settings.pop("backend", None) or server.backend()
    summary = run_evaluation(TABLE, backend, out, Options(batch_size=4, **settings), data=data)
    return summary, [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def question(body: dict[str, Any]) -> str:
    content = body["messages"][0]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content).strip()


def ask(server: Server, **settings: Any) -> Any:
    backend = server.backend(**settings)
    encoded = backend.encode("1", [{"role": "user", "content": [text("Hello?")]}])
    return backend.answer([encoded], max_new_tokens=7, min_new_tokens=1)[0]


# what is sent --------------------------------------------------------------------------------------------------------


def test_a_request_holds_images_text_and_settings_in_order(server: Server, pope: Path, tmp_path: Path) -> None:
    backend = OpenAIBackend(server.endpoint(key="secret"), "model-1")
    item = load_items(TABLE, pope)[0]
    pictures = [part["path"] for part in item.messages[0]["content"] if part["type"] == "image"]
    content = [image(pictures[0]), text("first "), image(pictures[0]), text(" last")]
    encoded = backend.encode("1", [{"role": "user", "content": content}])
    reply = backend.answer([encoded], max_new_tokens=33, min_new_tokens=1)[0]
    assert (reply.text, reply.finished) == ("yes", True)
    [body] = server.asked
    assert body["path"] == "/v1/chat/completions" and server.headers[0]["Authorization"] == "Bearer secret"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("model-1", 0, 33)
    parts = body["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "text", "image_url", "text"]
    kind, _, data = parts[0]["image_url"]["url"].partition(";base64,")
    assert kind == f"data:image/{Path(pictures[0]).suffix[1:].replace('jpg', 'jpeg')}"
    assert base64.b64decode(data) == Path(pictures[0]).read_bytes()


def test_plain_files_are_sent_as_they_are_and_others_as_the_picture_that_we_see(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 6, 3), dtype=np.uint8)
    rgb = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(tmp_path / "plain.png")
    rgb.save(tmp_path / "plain.jpg")
    rgb.convert("L").save(tmp_path / "grey.png")
    rgb.save(tmp_path / "turned.jpg", exif=exif)
    rgb.save(tmp_path / "a.webp", lossless=True)
    rgb.convert("P").save(tmp_path / "palette.png")
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg")
    clear = rgb.copy()
    clear.putalpha(7)
    clear.save(tmp_path / "clear.png")
    rgb.save(tmp_path / "jpeg-named.png", format="JPEG")
    for path in sorted(tmp_path.iterdir()):
        kind, data = image_bytes(path)
        same = path.name in ("plain.png", "plain.jpg", "grey.png", "jpeg-named.png")
        assert (data == path.read_bytes()) == same, path.name
        assert kind == ("jpeg" if path.name in ("plain.jpg", "jpeg-named.png") else "png")
        assert np.array_equal(np.asarray(Image.open(BytesIO(data)).convert("RGB")), np.asarray(load_image(path)))
    (tmp_path / "broken.png").write_bytes((tmp_path / "plain.png").read_bytes()[:60])
    with pytest.raises(MediaError, match="broken"):
        image_bytes(tmp_path / "broken.png")


def test_a_video_is_its_frames_with_their_names(server: Server, tmp_path: Path) -> None:
    for i in range(9):
        Image.new("RGB", (4, 4), (i * 20, 0, 0)).save(tmp_path / f"{i}.png")
    content = [{**video(tmp_path), "frames": 3}, text("\nWhat happens?")]
    parts = server.backend().encode("1", [{"role": "user", "content": content}]).messages[0]["content"]
    names = [part.get("text", "IMAGE") for part in parts]
    assert names == ["Frame1: ", "IMAGE", "\n", "Frame2: ", "IMAGE", "\n", "Frame3: ", "IMAGE", "\nWhat happens?"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert len(set(urls)) == 3


# what comes back -----------------------------------------------------------------------------------------------------


def test_a_run_is_scored_resumed_and_never_asked_twice(server: Server, pope: Path, tmp_path: Path) -> None:
    server.say = lambda body, n: (200, {}, chat(" Yes\n", "length" if "dog" in question(body) else "stop"))
    summary, rows = evaluated(server, pope, tmp_path / "out")
    assert {row["completion"] for row in rows} == {"Yes"} and len(server.asked) == len(rows) == 12
    assert {row["outcome"] for row in rows} <= {"ok", "truncated"}
    decode = summary["provenance"]["decode"]
    assert (decode["backend"], decode["model"], decode["base_url"]) == ("openai", "model-1", server.url)
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    evaluated(server, pope, tmp_path / "out")
    assert len(server.asked) == 12 and (tmp_path / "out" / "results.jsonl").read_bytes() == before


def test_an_answer_that_met_the_token_limit_is_truncated_and_an_empty_one_is_empty(server: Server) -> None:
    server.say = lambda body, n: (200, {}, chat("so far", "length"))
    reply = ask(server)
    assert (reply.text, reply.finished) == ("so far", False)
    server.say = lambda body, n: (200, {}, chat("", None))
    assert (ask(server).text, ask(server).finished) == ("", True)


def test_a_busy_server_is_asked_again_after_the_pause_that_it_names(server: Server) -> None:
    said = [(429, {"Retry-After": "0.4"}, b"slow down"), (503, {}, b"busy"), (200, {}, chat("now"))]
    server.say = lambda body, n: said[n - 1]
    assert ask(server).text == "now" and len(server.asked) == 3
    assert server.times[1] - server.times[0] >= 0.4
    server.asked.clear()
    server.say = lambda body, n: (429, {"Retry-After": "9999"}, b"quota")
    with pytest.raises(ServerDown, match="asks for a pause of 9999 s"):
        ask(server)
    assert len(server.asked) == 1


def test_a_pause_may_be_a_date_and_holds_for_every_request(server: Server) -> None:
    from datetime import UTC, datetime, timedelta
    from email.utils import format_datetime

    def say(body: dict[str, Any], n: int) -> Any:
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        return (429, {"Retry-After": date}, b"") if n == 1 else (200, {}, chat())

    server.say = say
    backend = server.backend(concurrency=1)
    encoded = [backend.encode(str(i), [{"role": "user", "content": [text(f"{i}?")]}]) for i in range(2)]
    backend.answer(encoded, max_new_tokens=7, min_new_tokens=1)
    assert server.times[1] - server.times[0] > 0.5


def test_a_slow_server_is_asked_again(server: Server) -> None:
    def say(body: dict[str, Any], n: int) -> Any:
        time.sleep(0.6 if n == 1 else 0)
        return 200, {}, chat("late")

    server.say = say
    assert ask(server, timeout=0.2).text == "late" and len(server.asked) == 2


def test_a_cut_connection_is_made_again(server: Server) -> None:
    server.say = lambda body, n: None if n == 1 else (200, {}, chat("again"))
    assert ask(server).text == "again" and len(server.asked) == 2


GARBAGE = [
    (b"<html>", "no chat completion"),
    (b"{}", "no chat completion"),
    (b'{"choices": []}', "no chat completion"),
    (b'{"choices": [{"message": {}}]}', "no chat completion"),
    (chat(5), "no chat completion"),
    (b"[1]", "no chat completion"),
    (b"\xff\xfe\x00", "no chat completion"),
]


@pytest.mark.parametrize(("data", "message"), GARBAGE)
def test_garbage_is_asked_again_and_then_the_error_of_that_item_alone(
    data: bytes, message: str, server: Server, pope: Path, tmp_path: Path
) -> None:
    bad = question({"messages": [{"content": load_items(TABLE, pope)[2].messages[0]["content"]}]})
    server.say = lambda body, n: (200, {}, data if question(body) == bad else chat("no"))
    summary, rows = evaluated(server, pope, tmp_path / "out")
    failed = [row for row in rows if row["outcome"] == "error"]
    assert failed and all(message in row["why"] and row["score"] is None for row in failed)
    assert summary["outcomes"] == {"error": len(failed), "ok": 12 - len(failed)}
    # three attempts for each that fails, one for each other: halving a failed batch asks nothing again
    assert len(server.asked) == 3 * len(failed) + (12 - len(failed))


REFUSALS = [
    (200, chat("", "content_filter"), Refused, "content filter"),
    (200, chat(None, "stop", refusal="I cannot look at that."), Refused, "I cannot look at that"),
    (400, b'{"error": {"code": "content_filter", "message": "blocked"}}', Refused, "content filter"),
    (400, b'{"error": {"message": "This model\'s maximum context length is 8 tokens"}}', TooLong, "maximum context"),
    (413, b"too large", TooLong, "413"),
]


@pytest.mark.parametrize(("status", "data", "kind", "message"), REFUSALS)
def test_refusals_are_no_errors_and_asked_once(
    status: int, data: bytes, kind: type, message: str, server: Server
) -> None:
    server.say = lambda body, n: (status, {}, data)
    with pytest.raises(kind, match=message):
        ask(server)
    assert len(server.asked) == 1


def test_a_refusal_is_typed_in_the_results_and_not_scored(server: Server, pope: Path, tmp_path: Path) -> None:
    bad = question({"messages": [{"content": load_items(TABLE, pope)[0].messages[0]["content"]}]})
    server.say = lambda body, n: (200, {}, chat("", "content_filter") if bad in question(body) else chat("no"))
    summary, rows = evaluated(server, pope, tmp_path / "out")
    assert (rows[0]["outcome"], rows[0]["score"]) == ("refused", None) and "content filter" in rows[0]["why"]
    assert summary["outcomes"]["refused"] + summary["outcomes"]["ok"] == 12 == len(server.asked)


def test_a_bad_request_is_that_items_error_and_shows_no_key(server: Server) -> None:
    bad = (422, {}, b"no such field; key secret")
    server.say = lambda body, n: bad if question(body) == "Hello?" else (200, {}, chat("yes"))
    with pytest.raises(Unanswered, match=r"HTTP 422: no such field; key \*\*\*"):
        ask(server, key="secret")
    assert [question(body) for body in server.asked] == ["Hello?", "Say yes."]
    server.say = lambda body, n: (401, {}, b"bad key")
    with pytest.raises(ServerDown, match="HTTP 401"):
        ask(server)


# a server that goes away ---------------------------------------------------------------------------------------------


def test_a_dead_server_ends_the_run_and_the_same_run_goes_on(pope: Path, tmp_path: Path) -> None:
    server = Server()
    backend = server.backend(attempts=2)
    server.say = lambda body, n: (200, {}, chat("no")) if n <= 4 else None
    with pytest.raises(ServerDown, match="does not answer"):
        evaluated(server, pope, tmp_path / "out", backend=backend)
    assert not (tmp_path / "out" / "results.jsonl").exists()
    kept = (tmp_path / "out" / "outcomes.jsonl").read_text().splitlines()
    assert len(kept) == 4 and all(json.loads(line)["outcome"] == "ok" for line in kept)
    server.say, before = (lambda body, n: (200, {}, chat("no"))), len(server.asked)
    summary, _ = evaluated(server, pope, tmp_path / "out")
    assert summary["outcomes"] == {"ok": 12} and len(server.asked) - before == 8
    server.stop()


def test_one_item_that_the_server_fails_on_costs_no_other_its_answer(
    server: Server, pope: Path, tmp_path: Path
) -> None:
    items = load_items(TABLE, pope)
    bad = question({"messages": [{"content": items[0].messages[0]["content"]}]})
    server.say = lambda body, n: (500, {}, b"crashed") if bad in question(body) else (200, {}, chat("no"))
    summary, rows = evaluated(server, pope, tmp_path / "out")
    assert summary["outcomes"]["error"] < 12 and rows[0]["why"].startswith("Unanswered: HTTP 500: crashed")


def test_without_a_server_there_is_a_clear_error() -> None:
    server = Server()
    server.stop()
    with pytest.raises(ServerDown, match="ConnectError"):
        server.backend(attempts=2)
    with pytest.raises(ConfigError, match="endpoint 'localhost'"):
        Endpoint("localhost")
    with pytest.raises(ConfigError) as error:
        Endpoint("http://me:secret@localhost/v1")
    assert "secret" not in str(error.value)


# pace ----------------------------------------------------------------------------------------------------------------


def test_requests_run_at_once_but_no_more_than_asked_for(server: Server) -> None:
    def say(body: dict[str, Any], n: int) -> Any:
        time.sleep(0.1)
        return 200, {}, chat()

    server.say = say
    backend = server.backend(concurrency=3)
    encoded = [backend.encode(str(i), [{"role": "user", "content": [text(f"{i}?")]}]) for i in range(9)]
    backend.answer(encoded, max_new_tokens=7, min_new_tokens=1)
    assert server.most_busy == 3 and len(server.asked) == 9


def test_a_rate_is_kept(server: Server) -> None:
    backend = server.backend(concurrency=4, rate=600)
    encoded = [backend.encode(str(i), [{"role": "user", "content": [text(f"{i}?")]}]) for i in range(5)]
    backend.answer(encoded, max_new_tokens=7, min_new_tokens=1)
    gaps = np.diff(server.times)
    assert sum(gaps) >= 0.35 and len(server.times) == 5


def test_replies_come_in_the_order_of_the_questions(server: Server) -> None:
    def say(body: dict[str, Any], n: int) -> Any:
        number = int(question(body))
        time.sleep(0.02 * (5 - number))
        return 200, {}, chat(f"{number}")

    server.say = say
    backend = server.backend(concurrency=5)
    encoded = [backend.encode(str(i), [{"role": "user", "content": [text(str(i))]}]) for i in range(5)]
    replies = backend.answer(encoded, max_new_tokens=7, min_new_tokens=1)
    assert [reply.text for reply in replies] == list("01234")


# which model ---------------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_the_address_the_name_and_what_the_server_says(server: Server) -> None:
    first = server.backend().fingerprint
    assert server.backend().fingerprint == first
    server.cards = [{"id": "model-1", "created": 1_700_000_001}]
    assert server.backend().fingerprint != first
    server.cards = [{"id": "model-1", "created": int(time.time()), "permission": [{"id": "random"}]}]
    now = server.backend().fingerprint
    server.cards = [{"id": "model-1", "created": int(time.time()) + 5}]
    assert server.backend().fingerprint == now != first  # vLLM writes the moment of asking
    server.cards = None
    assert OpenAIBackend(server.endpoint(), "model-1").fingerprint == now
    assert OpenAIBackend(server.endpoint(), "model-2").fingerprint != now


def test_an_unknown_model_names_those_of_the_server(server: Server) -> None:
    with pytest.raises(UnknownName, match=r"(?s)'model-2'.*did you mean model-1"):
        OpenAIBackend(server.endpoint(), "model-2")
    server.cards = [{"id": "a"}, {"id": "b"}]
    with pytest.raises(ConfigError, match=r"(?s)lists 2.*one of: a, b"):
        server.backend()
    server.cards = "nonsense"
    with pytest.raises(ServerDown, match="no model"):
        server.backend()


def test_nonsense_is_an_answer_that_cannot_be_read(server: Server) -> None:
    server.say = lambda body, n: (200, {}, b"{}")
    with pytest.raises(Nonsense, match="no chat completion"):
        server.endpoint(attempts=1).chat({}, lambda answer: answer["x"])
