"""`vlm serve` as a process of its own: started, ended, killed under load, behind TLS and behind balancers."""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest

from support import view_runs
from support.live_server import WAIT, ServeProcess
from vlm.models.checkpoint.assemble import build
from vlm.models.checkpoint.load import save_model
from vlm.models.specs import load_preset

TOKENIZER = Path(__file__).parents[1] / "golden" / "data" / "tokenizers" / "internlm2"

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(build(load_preset("tiny-internvl2"), tokenizer=TOKENIZER, seed=1), folder, tokenizer=TOKENIZER)
    return folder


@pytest.fixture
def begin(tmp_path, checkpoint):
    started = []

    def make(*options):
        started.append(ServeProcess(tmp_path, checkpoint, *options))
        return started[-1]

    yield make
    for one in started:
        one.kill()


def body(tokens, **more):
    hi = [{"role": "user", "content": "Hi"}]
    return {"model": "tiny", "messages": hi, "max_tokens": tokens, "min_tokens": tokens, **more}


def streamed(url, tokens, begun=None):
    """The pieces of a reply; `begun` is set at the first."""
    pieces = []
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body(tokens, stream=True), timeout=WAIT) as got:
        assert got.status_code == 200
        for line in got.iter_lines():
            if line and begun is not None:
                begun.set()
            pieces += [line] if line else []
    return pieces


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_finish_the_replies_in_progress_and_say_so(begin, signal_):
    """The exit code is 0: a process manager takes another for a crash."""
    server = begin("--port", "0")
    begun, pieces = threading.Event(), []
    client = threading.Thread(target=lambda: pieces.extend(streamed(server.url, 400, begun)))
    client.start()
    assert begun.wait(WAIT)
    assert server.end(signal_) == 0
    client.join(WAIT)
    assert pieces[-1] == "data: [DONE]" and json.loads(pieces[-2][6:])["choices"][0]["finish_reason"] == "length"
    assert server.lines[0].startswith("loading tiny from ")
    assert server.lines[-1].startswith("ended") and not any("Traceback" in line for line in server.lines)
    assert len([line for line in server.lines if line.startswith("tiny length: ")]) == 1  # one line per request
    assert not list(Path(server.process.args[4]).parent.glob("vlm-serve-*"))


def test_pictures_of_another_place_are_shown_where_that_is_allowed(begin, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    view_runs.write_samples(elsewhere, 30)
    (tmp_path / "runs").symlink_to(elsewhere / "runs")
    query = {"evaluation": "study/eval/v2pe-32k/digit-haystack/stride64", "number": 0, "image": 0}
    codes = []
    for options in ([], ["--allow-outside", str(elsewhere / "dataset")]):
        server = begin("--port", "0", *options)
        codes.append(httpx.get(f"{server.url}/vlm/media", params=query, timeout=WAIT).status_code)
        server.kill()
    assert codes == [422, 200]


def test_a_killed_server_is_an_error_for_its_clients_and_starts_again(begin, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    server = begin("--port", port)
    sent = httpx.post(f"{server.url}/vlm/uploads", content=b"x" * 100, headers={"Content-Type": "image/png"})
    assert sent.status_code == 200
    begun, failures = [threading.Event() for _ in range(4)], []

    def ask(number):
        try:
            pieces = streamed(server.url, 1800, begun[number])
            failures.append("[DONE]" not in pieces[-1] and "cut")
        except httpx.HTTPError as error:
            failures.append(type(error).__name__)

    clients = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for client in clients:
        client.start()
    assert all(one.wait(WAIT) for one in begun)
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    for client in clients:
        client.join(WAIT)
    assert len(failures) == 4 and all(failures)  # nobody hangs, and nobody takes half a reply for a whole one
    (left,) = tmp_path.glob("vlm-serve-*")
    os.utime(left, (0, 0))
    again = begin("--port", port)
    got = httpx.post(f"{again.url}/v1/chat/completions", json=body(3), timeout=WAIT)
    assert got.status_code == 200 and got.json()["usage"]["completion_tokens"] == 3
    assert not left.exists() and len(list(tmp_path.glob("vlm-serve-*"))) == 1
    assert again.end(signal.SIGTERM) == 0


def test_https_with_a_key_of_the_environment(begin, tmp_path, monkeypatch):
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificate, and is not here")
    files = [str(tmp_path / name) for name in ("key.pem", "certificate.pem")]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", files[0], "-out", files[1]]
    subprocess.run(made, check=True, capture_output=True)
    monkeypatch.setenv("MY_KEY", "secret")
    server = begin("--port", "0", "--tls-certificate", files[1], "--tls-key", files[0], "--api-key-env", "MY_KEY")
    assert server.url.startswith("https://")
    trusted = ssl.create_default_context(cafile=files[1])
    with httpx.Client(verify=trusted, timeout=WAIT) as client:
        assert client.get(f"{server.url}/v1/models").status_code == 401
        client.headers["Authorization"] = "Bearer secret"
        assert client.post(f"{server.url}/v1/chat/completions", json=body(2)).status_code == 200
    assert not any("secret" in line for line in server.lines)


NGINX = """
daemon off; pid {home}/nginx.pid; error_log {home}/nginx.log; worker_processes 1;
events {{ worker_connections 100; }}
http {{
  access_log off; client_max_body_size 256m;
  client_body_temp_path {home}/b; proxy_temp_path {home}/p; fastcgi_temp_path {home}/f; uwsgi_temp_path {home}/u;
  scgi_temp_path {home}/s;
  upstream vlm {{ least_conn; server {first}; server {second}; }}
  server {{
    listen 127.0.0.1:{port};
    proxy_set_header Host $http_host; proxy_buffering off; proxy_read_timeout 600s;
    location / {{ proxy_pass http://vlm; }}
  }}
}}
"""
HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
frontend page
  bind 127.0.0.1:{port}
  default_backend vlm
backend vlm
  balance leastconn
  option httpchk GET /health
  server first {first} check inter 200
  server second {second} check inter 200
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "config", "arguments"), [("nginx", NGINX, ["-p", "{home}", "-c"]), ("haproxy", HAPROXY, ["-f"])]
)
def test_two_servers_behind_a_balancer_answer_as_one(program, config, arguments, begin, tmp_path):
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    if not found:
        pytest.skip(f"{program} is not installed (Debian's package {program})")
    first, second = (begin("--port", "0") for _ in range(2))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    hosts = {"first": first.url[7:], "second": second.url[7:]}
    (tmp_path / "conf").write_text(config.format(home=tmp_path, port=port, **hosts))
    options = [option.format(home=tmp_path) for option in arguments]
    balancer = subprocess.Popen([found, *options, str(tmp_path / "conf")], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.1)
        replies = {}

        def ask(number):
            pieces = [json.loads(line[6:]) for line in streamed(url, 60)[:-1]]
            replies[number] = "".join(p["choices"][0]["delta"].get("content", "") for p in pieces)

        clients = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(WAIT)
        assert len(replies) == 8 and len(set(replies.values())) == 1  # each server gives the same reply
        for server in (first, second):
            done = re.search(
                r'vlm_requests_total\{ended="length",model="tiny"\} (\d+)', httpx.get(f"{server.url}/metrics").text
            )
            assert int(done[1]) >= 1
        assert httpx.get(f"{url}/v1/models", headers={"Origin": url}).status_code == 200  # the page works through it
        assert first.end(signal.SIGTERM) == 0  # one ends: the other answers
        deadline, codes = time.monotonic() + WAIT, []
        while codes[-3:] != [200] * 3 and time.monotonic() < deadline:
            codes.append(httpx.post(f"{url}/v1/chat/completions", json=body(2), timeout=WAIT).status_code)
        assert codes[-3:] == [200] * 3
    finally:
        balancer.terminate()
        balancer.wait(WAIT)
