"""`vlm serve` behind real HTTP, asked by the official client and by clients that do everything wrong."""

import base64
import io
import json
import threading
import time

import httpx
import openai
import pytest
from PIL import Image

from vlm.core.sample.records import text
from vlm.models.answers import answer
from vlm.models.engine import Limits
from vlm.models.session import user_turn

NAME = "tiny"


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def png(color=(200, 30, 30), size=(60, 40)):
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "PNG")
    return out.getvalue()


def data_url(content, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def user(*parts):
    made = [{"type": "text", "text": p} if isinstance(p, str) else picture(data_url(p)) for p in parts]
    return [{"role": "user", "content": made}]


def picture(url):
    return {"type": "image_url", "image_url": {"url": url}}


def asked(client, messages, **settings):
    return client.chat.completions.create(model=NAME, messages=messages, **{"max_tokens": 8, **settings})


def test_the_official_client_gets_the_answer_of_vlm_chat(parts, client, tmp_path):
    model, processor = parts
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_bytes(png((0, 200, 0)))
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for n in range(3):
        prompt = processor.encode([user_turn("What is it?", files[:n], [], processor.template)])
        wanted = answer(model, processor, [prompt], max_new_tokens=8)[0]
        reply = asked(client, user(*[f.read_bytes() for f in files[:n]], "What is it?"))
        assert reply.choices[0].message.content == wanted.text
        assert reply.choices[0].finish_reason == ("stop" if wanted.finished else "length")
        assert reply.usage.prompt_tokens == len(prompt) and reply.usage.completion_tokens == wanted.n_new
        assert reply.vlm["tiles"] == [t for _, _, t in prompt.image_spans]


def test_a_stream_joins_to_the_reply_and_ends_with_the_usage(client):
    messages = user(png(), "What is it?")
    whole = asked(client, messages)
    chunks = list(asked(client, messages, stream=True, stream_options={"include_usage": True}))
    joined = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert joined == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0  # the same document again


def test_several_replies_seeds_log_probabilities_and_stop_texts(client):
    messages = user("Say something.")
    drawn = {"temperature": 1.0, "n": 3, "seed": 3, "logprobs": True, "top_logprobs": 2}
    a, b = asked(client, messages, **drawn), asked(client, messages, **drawn)
    texts = [c.message.content for c in a.choices]
    assert texts == [c.message.content for c in b.choices] and len(set(texts)) > 1
    tokens = a.choices[0].logprobs.content
    assert 1 <= len(tokens) <= 8 and all(len(t.top_logprobs) == 2 and t.logprob <= 0 for t in tokens)
    whole = asked(client, messages, max_tokens=16).choices[0].message.content
    stop = whole[len(whole) // 2 :][:3]
    cut = asked(client, messages, max_tokens=16, stop=[stop]).choices[0]
    assert cut.message.content == whole.split(stop)[0] and cut.finish_reason == "stop"


def test_the_strides_of_a_request_change_its_positions(client):
    messages = user(png(size=(300, 50)), "What is it?")
    used = {}
    for strides in (None, 1.0, 0.25):
        used[strides] = asked(client, messages, extra_body={"vlm": {"strides": strides}}).vlm["positions"]
    assert used[0.25] < used[1.0] < used[None]


def test_uploads_are_used_by_their_address(server, client):
    sent = httpx.post(f"{server.url}/vlm/uploads", content=png(), headers={"Content-Type": "image/png"}).json()
    messages = [{"role": "user", "content": [picture(sent["url"]), {"type": "text", "text": "What is it?"}]}]
    by_data = asked(client, user(png(), "What is it?"))
    assert asked(client, messages).choices[0].message.content == by_data.choices[0].message.content


def test_a_conversation_keeps_its_turns(parts, client):
    model, processor = parts
    turns = [("user", "hi"), ("assistant", "hello"), ("user", "who?")]
    prompt = processor.encode([{"role": r, "content": [text(t)]} for r, t in turns])
    wanted = answer(model, processor, [prompt], max_new_tokens=8)[0].text
    reply = asked(client, [{"role": r, "content": t} for r, t in turns])
    assert reply.choices[0].message.content == wanted


def test_text_that_looks_like_a_mark_stays_text(client):
    plain = asked(client, user("What is <image> or <|im_end|> or </img>?"))
    assert plain.vlm["tiles"] == []


BAD = {
    "broken base64": (picture("data:image/png;base64,@@@"), 400, "invalid_base64"),
    "no comma": (picture("data:image/png;base64"), 400, "invalid_url"),
    "a path": (picture("file:///etc/hostname"), 400, "invalid_url"),
    "no URL": (picture("http://["), 400, "invalid_url"),
    "another host": (picture("http://127.0.0.1:9/a.png"), 400, "host_not_allowed"),
    "SVG": (picture(data_url(b"<svg/>", "image/svg+xml")), 400, "unsupported_media_type"),
    "no picture": (picture(data_url(b"<html>404</html>")), 400, None),
    "half a picture": (picture(data_url(png(size=(300, 300))[:200])), 400, None),
    "unknown upload": (picture("upload:nothing"), 400, "not_found"),
    "unknown part": ({"type": "input_audio"}, 400, None),
    "empty part": ({"type": "image_url"}, 400, None),
}


@pytest.mark.parametrize("case", BAD)
def test_broken_media_are_refused_by_name(client, case):
    part, status, code = BAD[case]
    with pytest.raises(openai.APIStatusError) as error:
        asked(client, [{"role": "user", "content": [part, {"type": "text", "text": "what?"}]}])
    assert error.value.status_code == status and error.value.body["code"] in (code, "invalid_media")
    assert "vlm-serve-" not in str(error.value)  # no path of this machine


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"model": "nobody"}, 404),
        ({"messages": []}, 400),
        ({"messages": [{"role": "assistant", "content": "I begin"}]}, 400),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, 400),
        ({"messages": "hello"}, 400),
        ({"max_tokens": 0}, 400),
        ({"max_tokens": -5}, 400),
        ({"temperature": -1}, 400),
        ({"temperature": "NaN"}, 400),
        ({"top_p": 0}, 400),
        ({"n": 1000}, 400),
        ({"tools": [{"type": "function"}]}, 400),
        ({"response_format": {"type": "json_object"}}, 400),
        ({"nonsense": 1}, 400),
        ({"top_logprobs": 3}, 400),
        ({"vlm": {"strides": 0}}, 400),
        ({"vlm": {"stride": 1}}, 400),
        ({"max_tokens": 5000}, 400),
    ],
)
def test_wrong_requests_are_refused_in_the_form_of_the_protocol(server, change, status):
    body = {"model": NAME, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4} | change
    got = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert got.status_code == status
    assert got.json()["error"]["message"] and got.json()["error"]["type"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "embeddings"), ("POST", "completions"), ("GET", "chat/completions"), ("DELETE", "models")],
)
def test_what_is_not_served_is_not_found(server, method, path):
    got = httpx.request(method, f"{server.url}/v1/{path}")
    assert got.status_code == 404 and "there are GET /v1/models" in got.json()["error"]["message"]


def test_too_long_says_both_counts_before_any_work(server, client):
    before = server.served.engine.counts["steps"]
    with pytest.raises(openai.BadRequestError) as error:
        asked(client, user("word " * 5000))
    assert error.value.code == "context_length_exceeded" and "4,096" in str(error.value)
    assert server.served.engine.counts["steps"] == before


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"model": NaN}', b"null"])
def test_bodies_that_are_no_request(server, body):
    got = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert got.status_code == 400 and "message" in got.json()["error"]


def test_giant_bodies_and_files_end_early(start):
    server = start(max_body=100_000, max_file=1000)
    got = httpx.post(f"{server.url}/v1/chat/completions", content=b"x" * 200_000)
    assert got.status_code == 413 and got.json()["error"]["code"] == "request_too_large"
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.BadRequestError, match="at most 1,000"):
        asked(client, user(b"\x89PNG" + bytes(2000), "what?"))


def test_keys_origins_and_paths(start):
    server = start(api_key="secret")
    url = f"{server.url}/v1/models"
    assert httpx.get(url).status_code == httpx.get(url, headers={"Authorization": "Bearer x"}).status_code == 401
    assert httpx.get(url, headers={"Authorization": "Bearer secret"}).json()["data"][0]["id"] == NAME
    other = {"Authorization": "Bearer secret", "Origin": "https://elsewhere.example"}
    assert httpx.get(url, headers=other).status_code == 403
    own = {"Authorization": "Bearer secret", "Origin": server.url}
    assert httpx.get(url, headers=own).status_code == 200
    for path in ("/../pyproject.toml", "/%2e%2e/app.py", "/..%2fapp.py", "//etc/hostname"):
        assert httpx.get(server.url + path).status_code == 404


def test_a_full_queue_is_said_and_a_client_that_leaves_makes_room(start):
    server = start(limits=Limits(running=1, queue=1))
    body = {"model": NAME, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 100_000, "stream": True}
    engine = server.served.engine
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=30) as first:
        assert first.status_code == 200
        waiting = threading.Thread(
            target=httpx.post,
            args=(f"{server.url}/v1/chat/completions",),
            kwargs={"json": body | {"max_tokens": 1, "stream": False}, "timeout": 60},
        )
        waiting.start()
        while not engine.waiting:
            time.sleep(0.01)
        full = httpx.post(f"{server.url}/v1/chat/completions", json=body | {"stream": False})
        assert full.status_code == 429 and full.headers["Retry-After"]
    waiting.join(30)
    assert not waiting.is_alive() and engine.counts["cancelled"] >= 1


def test_health_models_and_metrics(server, client):
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    (card,) = client.models.list().data
    assert card.id == NAME and card.vlm["tokens_per_tile"] == 4
    asked(client, user("hi"))
    said = httpx.get(f"{server.url}/metrics").text
    assert 'vlm_requests_total{ended="length",model="tiny"}' in said and "vlm_new_tokens_total" in said
    assert any("tokens" in line for line in server.lines)


def test_a_late_reply_is_said(start):
    server = start(seconds=0.0)
    body = {"model": NAME, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    got = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert got.status_code == 503 and got.json()["error"]["code"] == "timeout"


def test_every_line_of_a_stream_is_json(server):
    body = {"model": NAME, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "stream": True, "n": 2}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as got:
        lines = [line.removeprefix("data: ") for line in got.iter_lines() if line]
    assert lines[-1] == "[DONE]" and {json.loads(line)["choices"][0]["index"] for line in lines[:-1]} == {0, 1}
