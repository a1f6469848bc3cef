"""What OpenAI-compatible servers refuse in their own words, and what hostile ones send."""

import gzip
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from support import openai_server as fake
from vlm.core.errors import FetchError, VlmError
from vlm.core.sample.records import image, text
from vlm.eval.backends import endpoint as endpoints
from vlm.eval.backends.base import TooLong
from vlm.eval.backends.endpoint import Endpoint, Nonsense, Unanswered
from vlm.eval.backends.openai import SAME, OpenAIBackend, ServerDown
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import load_items
from vlm.eval.mini import make_mini
from vlm.eval.run.runner import Options, run_evaluation

chat, server, Server = fake.chat, fake.server, fake.Server
TABLE = load_benchmark("POPE")


@pytest.fixture(scope="module")
def pope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mini("POPE", tmp_path_factory.mktemp("mini") / "pope", n=4)


def refusal(message: str, status: int = 400, **more: Any) -> tuple[int, dict[str, str], bytes]:
    return status, {}, json.dumps({"error": {"message": message, **more}}).encode()


def question(body: dict[str, Any]) -> str:
    content = body["messages"][0]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def ask(server: Server, **settings: Any) -> Any:
    backend = server.backend(**settings)
    encoded = backend.encode("1", [{"role": "user", "content": [text("Hello?")]}])
    return backend.answer([encoded], max_new_tokens=7, min_new_tokens=1)[0]


def evaluated(server: Server, data: Path, out: Path, **settings: Any) -> tuple[Any, list[dict[str, Any]]]:
    backend = server.backend(**settings)
    summary = run_evaluation(TABLE, backend, out, Options(batch_size=4), data=data)
    return summary, [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


# parameters that a model refuses -------------------------------------------------------------------------------------

MAX_TOKENS = [
    refusal("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
            "instead.", param="max_tokens", code="unsupported_parameter"),
    refusal("max_tokens is deprecated, please use max_completion_tokens"),
    (422, {}, b'{"detail":[{"type":"extra_forbidden","loc":["body","max_tokens"],"msg":"Extra inputs are not permitted;'
              b' did you mean max_completion_tokens?"}]}'),
]  # fmt: skip
TEMPERATURE = [
    refusal("Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is "
            "supported.", param="temperature", code="unsupported_value"),
    refusal("gpt-x models don't support temperature=0. Only temperature=1 is supported."),
    refusal("`temperature` must be strictly positive", 422),
    refusal("temperature is deprecated for this model."),
    (422, {}, b'{"detail":[{"type":"greater_than","loc":["body","temperature"],"msg":"Input should be greater than'
              b' 0"}]}'),
]  # fmt: skip


@pytest.mark.parametrize("said", MAX_TOKENS)
def test_the_newer_name_of_the_budget_is_learned_once(server: Server, said: Any) -> None:
    server.say = lambda body, n: said if "max_tokens" in body else (200, {}, chat("yes"))
    backend = server.backend(concurrency=1)
    encoded = [backend.encode(str(i), [{"role": "user", "content": [text(f"{i}?")]}]) for i in range(3)]
    assert [r.text for r in backend.answer(encoded, max_new_tokens=7, min_new_tokens=1)] == ["yes"] * 3
    assert [body.get("max_completion_tokens") for body in server.asked] == [None, 7, 7, 7]
    assert not backend.note  # the same budget under another name: nothing changes


@pytest.mark.parametrize("said", TEMPERATURE)
def test_a_refused_temperature_is_left_out_and_each_answer_says_so(
    server: Server, said: Any, pope: Path, tmp_path: Path
) -> None:
    server.say = lambda body, n: said if "temperature" in body else (200, {}, chat("no"))
    summary, _ = evaluated(server, pope, tmp_path / "out", concurrency=1)
    assert summary["outcomes"] == {"ok": 12} and len(server.asked) == 13
    kept = [json.loads(line) for line in (tmp_path / "out" / "outcomes.jsonl").read_text().splitlines()]
    assert {row["detail"] for row in kept} == {"temperature not sent: the model refuses it"}


def test_both_at_once_are_learned_also_by_threads_that_ask_together(server: Server) -> None:
    def say(body: dict[str, Any], n: int) -> Any:
        time.sleep(0.02)
        return MAX_TOKENS[0] if "max_tokens" in body else TEMPERATURE[0] if "temperature" in body else (200, {}, chat())

    server.say = say
    backend = server.backend(concurrency=4)
    encoded = [backend.encode(str(i), [{"role": "user", "content": [text(f"{i}?")]}]) for i in range(8)]
    assert len(backend.answer(encoded, max_new_tokens=7, min_new_tokens=1)) == 8
    assert backend.endpoint.dialect.left_out == ["temperature"]


def test_a_server_that_only_streams_is_read_as_a_stream(server: Server) -> None:
    deltas = [{"role": "assistant", "content": ""}, {"content": "Ye"}, {"reasoning_content": "hm"}, {"content": "s\n"}]
    events = [{"choices": [{"delta": delta}]} for delta in deltas]
    events += [{"choices": [{"delta": {}, "finish_reason": "length"}]}, {"choices": [], "usage": {}}]
    body = ": ping\n\n" + "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    body = body.removeprefix(": ping\n\n")
    wants = refusal("This model only supports streaming. Set stream=true.")
    server.say = lambda sent, n: (200, {}, body.encode()) if sent.get("stream") else wants
    reply = ask(server)
    assert (reply.text, reply.finished) == ("Yes", False) and len(server.asked) == 2
    cut = body[: body.index("length")]
    server.say = lambda sent, n: (200, {}, cut.encode())
    with pytest.raises(ServerDown, match="sends no answers"):
        ask(server)
    server.say = lambda sent, n: (200, {}, b'data: {"error": {"message": "maximum context length", "code": 400}}\n\n')
    with pytest.raises(TooLong):
        ask(server)


@pytest.mark.parametrize(
    "message", ["no such model", "messages[0] is invalid", "max_tokens is too large: 9. Use fewer.", "bad image"]
)
def test_other_refusals_teach_nothing_and_are_sent_once(server: Server, message: str) -> None:
    server.say = lambda body, n: (200, {}, chat()) if "Say yes" in question(body) else refusal(message)
    with pytest.raises(Unanswered, match="HTTP 400"):
        ask(server)
    assert [question(body) for body in server.asked] == ["Hello?", "Say yes."]


# prompts that are too long -------------------------------------------------------------------------------------------

LONG = [
    "The input (61709 tokens) is longer than the model's context length (40960 tokens).",
    "Requested token count exceeds the model's maximum context length of 40960 tokens.",
    "The decoder prompt (length 10127) is longer than the maximum model length of 8192. Make sure that "
    "`max_model_len` is no smaller than the number of text tokens plus multimodal tokens.",
    "'max_tokens' or 'max_completion_tokens' is too large: 100. This model's maximum context length is 8192 tokens "
    "and your request has 8190 input tokens (100 > 8192 - 8190).",
    "the request exceeds the available context size, try increasing it",
    "request (9000 tokens) exceeds the available context size (4096 tokens), try increasing it",
    "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 9000 `inputs` tokens",
    "Input validation error: `inputs` must have less than 1024 tokens. Given: 1500",
    "prompt is too long: 210000 tokens > 200000 maximum",
    "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
    "Your input exceeds the context window of this model. Please adjust your input and try again.",
    "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 30720]",
    "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
    "too many tokens: total number of tokens in the prompt cannot exceed 4081",
    "Please reduce the length of the messages or completion.",
    "Input is too long for requested model.",
    "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
    "Current length is 9000 while limit is 8192",
    "Requested tokens (5000) exceed context window of 4096",
    "Prompt length (5000) exceeds maximum input length (4096)",
    "internal error happened, status code ResponseType.INPUT_LENGTH_ERROR",
    "input token length exceeds session_len 8192",
    "However, the model is loaded with context length of only 4096 tokens",
]


@pytest.mark.parametrize("message", LONG)
@pytest.mark.parametrize("form", ["error", "flat", "detail", "inside"])
def test_a_prompt_that_is_too_long_is_refused_whatever_the_server_calls_it(
    server: Server, message: str, form: str
) -> None:
    bodies = {
        "error": {"error": {"message": message, "type": "BadRequestError"}},
        "flat": {"object": "error", "message": message, "code": 400},
        "detail": {"error": message},
        "inside": {"error": {"message": message, "code": 400}},
    }
    status = 200 if form == "inside" else 422 if form == "detail" else 400
    server.say = lambda body, n: (status, {}, json.dumps(bodies[form]).encode())
    with pytest.raises(TooLong):
        ask(server)
    assert len(server.asked) == 1


def test_the_code_alone_names_a_prompt_that_is_too_long(server: Server) -> None:
    for code in ("context_length_exceeded", "exceed_context_size_error"):
        server.say = lambda body, n, code=code: refusal("no", type=code)
        with pytest.raises(TooLong):
            ask(server)


# what every question shares ------------------------------------------------------------------------------------------


def test_a_refusal_that_every_item_shares_stops_the_run_after_a_few(server: Server, pope: Path, tmp_path: Path) -> None:
    def say(body: dict[str, Any], n: int) -> Any:
        pictured = isinstance(body["messages"][0]["content"], list)
        return refusal(f"my-model is not a multimodal model (request {n})") if pictured else (200, {}, chat("yes"))

    server.say = say
    with pytest.raises(ServerDown, match="refuses every question: HTTP 400: my-model is not a multimodal model"):
        evaluated(server, pope, tmp_path / "out", concurrency=1)
    assert len(server.asked) == 2  # the question, and a greeting with a picture
    server.say = lambda body, n: (200, {}, chat("no"))
    summary, _ = evaluated(server, pope, tmp_path / "out")
    assert summary["outcomes"] == {"ok": 12}


def test_an_error_that_the_first_items_share_and_others_do_not_stops_nothing(server: Server) -> None:
    server.say = lambda body, n: refusal("bad item") if "bad" in json.dumps(body["messages"]) else (200, {}, chat())
    backend = server.backend(concurrency=1)
    bad = [backend.encode(str(i), [{"role": "user", "content": [text(f"bad {i}")]}]) for i in range(2 * SAME)]
    good = backend.encode("good", [{"role": "user", "content": [text("good")]}])
    with pytest.raises(Unanswered, match="bad item"):
        backend.answer([*bad, good], max_new_tokens=7, min_new_tokens=1)
    assert backend.answer([good], max_new_tokens=7, min_new_tokens=1)[0].text == "yes"


def test_a_page_in_place_of_every_answer_stops_the_run(server: Server, pope: Path, tmp_path: Path) -> None:
    server.say = lambda body, n: (200, {}, b"<html>log in</html>")
    with pytest.raises(ServerDown, match="log in"):
        evaluated(server, pope, tmp_path / "out", concurrency=1, attempts=1)
    assert len(server.asked) < 12


@pytest.mark.parametrize(
    ("status", "fix"),
    [(401, "--api-key-env"), (402, "credit"), (403, "not allowed"), (404, "--base-url"), (429, "--rate")],
)
def test_what_every_question_would_get_says_what_to_do(server: Server, status: int, fix: str) -> None:
    for say in (refusal("no", status), (200, {}, json.dumps({"error": {"message": "no", "code": status}}).encode())):
        server.say = lambda body, n, say=say: say
        with pytest.raises(ServerDown) as stop:
            ask(server)
        assert fix in (stop.value.error.fix or "") and "answers so far are kept" in (stop.value.error.fix or "")


# hostile servers -----------------------------------------------------------------------------------------------------

DEEP = b"[" * 200_000
HOSTILE = [
    ({}, DEEP),
    ({}, b'{"choices":' + DEEP),
    ({}, b'{"a":' * 100_000),
    ({}, b"1" * 10_000),
    ({}, b'{"error":' + DEEP),
    ({"Content-Encoding": "gzip"}, gzip.compress(bytes(300_000_000), 1)),
    ({"Content-Encoding": "gzip"}, b"no gzip"),
    ({"Content-Encoding": "br"}, b"abc"),
    ({"Date": "x", "Retry-After": "\u00b2"}, b"{}"),
    ({}, chat({"type": "text"})),
    ({}, b'{"choices": [{"message": {"content": "yes", "refusal": 5}, "finish_reason": {}}]}'),
    ({}, b'{"choices": "x"}'),
    ({}, b'{"choices": {"0": 1}}'),
]


@pytest.mark.parametrize("status", [200, 400, 503])
@pytest.mark.parametrize(("headers", "data"), HOSTILE)
def test_hostile_answers_are_typed_and_cost_only_their_own_item(
    server: Server, headers: dict[str, str], data: bytes, status: int
) -> None:
    safe = {name: value.encode().decode("latin-1") for name, value in headers.items()}
    bad = lambda body: "bad" in json.dumps(body["messages"])  # noqa: E731
    server.say = lambda body, n: (status, safe, data) if bad(body) else (200, {}, chat("fine"))
    backend = server.backend(attempts=2)
    encoded = [backend.encode(w, [{"role": "user", "content": [text(w)]}]) for w in ("good", "bad", "good too")]
    with pytest.raises((VlmError, ServerDown)) as error:  # a list of parts or a null is read by the function of replies
        backend.answer(encoded, max_new_tokens=7, min_new_tokens=1)
    assert "not asked" not in str(error.value) and len(str(error.value)) < 600
    replies = backend.answer([encoded[0], encoded[2]], max_new_tokens=7, min_new_tokens=1)
    assert [reply.text for reply in replies] == ["fine", "fine"]


def test_a_body_beyond_the_limit_is_not_held(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "LARGEST", 100_000)
    server.say = lambda body, n: (200, {}, chat("x" * (5 if "Say yes" in question(body) else 200_000)))
    with pytest.raises(Nonsense, match="more than 100,000 bytes"):
        ask(server)
    assert len(server.asked) == 2


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: "])
def test_a_byte_now_and_then_ends_at_the_timeout(start: bytes) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=drip, args=(connection,), daemon=True).start()

    def drip(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            try:
                connection.sendall(start)
                for _ in range(600):
                    connection.sendall(b"x")
                    time.sleep(0.05)
            except OSError:
                pass

    threading.Thread(target=serve, daemon=True).start()
    slow = Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", timeout=0.5, attempts=2, wait=0.01)
    started = time.monotonic()
    with pytest.raises(Unanswered, match="too slow"):
        slow.chat({}, lambda answer: answer)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("after", ["\u00b2", "nan", "inf", "1e999", "-1", "soon", "9" * 500])
def test_a_pause_that_is_no_number_stops_no_thread(server: Server, after: str) -> None:
    said = {"Retry-After": after.encode().decode("latin-1"), "Date": "Mon, 99 Foo"}
    server.say = lambda body, n: (503, said, b"busy") if n == 1 else (200, {}, chat("now"))
    if after == "9" * 500:
        server.say = lambda body, n: (200, {}, chat("now"))
    assert ask(server).text == "now"


def test_an_exception_of_any_kind_in_a_worker_is_the_outcome_of_its_question(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise MemoryError("much")

    backend = server.backend()
    monkeypatch.setattr(backend.endpoint, "chat", broken)
    encoded = backend.encode("1", [{"role": "user", "content": [text("Hello?")]}])
    with pytest.raises(Unanswered, match="MemoryError: much"):
        backend.answer([encoded], max_new_tokens=7, min_new_tokens=1)


def test_half_a_surrogate_pair_in_a_reply_can_be_written(server: Server, pope: Path, tmp_path: Path) -> None:
    server.say = lambda body, n: (200, {}, chat("XX").replace(b"XX", b"yes \\ud83d!"))
    _, rows = evaluated(server, pope, tmp_path / "out")
    assert {row["completion"] for row in rows} == {"yes \ufffd!"}


@pytest.mark.parametrize("created", [10**400, float("inf"), "now", None, [], -1])
def test_a_model_list_of_any_content_is_read(server: Server, created: Any) -> None:
    server.cards = [{"id": "model-1", "created": created, "root": {"a": [1]}}, {"id": 5}]
    assert server.backend().model == "model-1"


def test_proxy_variables_are_named_and_an_own_server_needs_none(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "localhost,[::1]")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert ask(server).text == "yes"
    with pytest.raises(FetchError, match="NO_PROXY") as error:
        Endpoint("http://example.org/v1")
    assert "unset NO_PROXY" in (error.value.fix or "")
    monkeypatch.delenv("NO_PROXY")
    with pytest.raises(Unanswered, match=r"through the proxy HTTP_PROXY=http://127\.0\.0\.1:9"):
        Endpoint("http://example.org/v1", attempts=1).models()


def test_a_question_with_pictures_is_greeted_with_one(server: Server, pope: Path) -> None:
    path = next(p["path"] for p in load_items(TABLE, pope)[0].messages[0]["content"] if p["type"] == "image")
    server.say = lambda body, n: refusal("too small" if "Say yes" in json.dumps(body["messages"]) else "0 images")
    backend = OpenAIBackend(server.endpoint(), "model-1", concurrency=1)
    encoded = [backend.encode(str(i), [{"role": "user", "content": [image(path), text("?")]}]) for i in range(9)]
    with pytest.raises(ServerDown, match="0 images"):
        backend.answer(encoded, max_new_tokens=7, min_new_tokens=1)
    assert len(server.asked) == 2 * SAME  # the greeting is refused in other words
    assert {part["type"] for part in server.asked[-1]["messages"][0]["content"]} == {"image_url", "text"}
