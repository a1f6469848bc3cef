"""Servers that stall, lie about sizes, send pages or never end: a download ends in time, bounded and typed."""

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from vlm.core import net
from vlm.core.errors import FetchError
from vlm.core.fetch import transfer
from vlm.core.fetch.transfer import Patience, fetch_url

OK = b"HTTP/1.1 200 OK\r\n"
QUICK = Patience(tries=2, backoff=0.01, timeout=0.5, slowest=10_000, window=0.5)

Say = Callable[[socket.socket, bytes], None]


class RawServer:
    """Answers each connection with `say(socket, request)`, byte for byte as a test wants it."""

    def __init__(self, say: Say) -> None:
        self.say, self.asked, self.sent = say, [], 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=50)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._answer, args=(self.listener.accept()[0],), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            request = connection.recv(65536)
            self.asked.append(request)
            self.say(connection, request)


@pytest.fixture
def serving() -> Iterator[Callable[[Say | bytes], RawServer]]:
    servers: list[RawServer] = []

    def start(say: Say | bytes) -> RawServer:
        servers.append(RawServer(say if callable(say) else lambda connection, _: connection.sendall(say)))
        return servers[-1]

    yield start
    for server in servers:
        server.listener.close()


def slowly(connection: socket.socket, data: bytes, pause: float = 0.05) -> None:
    for byte in data:
        connection.sendall(bytes([byte]))
        time.sleep(pause)


def drip(connection: socket.socket, _: bytes) -> None:
    connection.sendall(OK + b"Content-Length: 100000\r\n\r\n")
    slowly(connection, bytes(1000))


def drip_chunks(connection: socket.socket, _: bytes) -> None:
    """No byte of the file ever comes: only an endless extension of a chunk's header."""
    connection.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n5;")
    slowly(connection, b"x" * 1000)


def drip_headers(connection: socket.socket, _: bytes) -> None:
    slowly(connection, OK + b"X: " + b"x" * 1000)


@pytest.mark.parametrize("say", [drip, drip_chunks, drip_headers])
def test_a_byte_now_and_then_is_given_up_in_time(serving, tmp_path: Path, say: Say) -> None:
    server, started = serving(say), time.monotonic()
    with pytest.raises(FetchError, match="too slow") as error:
        fetch_url(f"{server.url}/f", tmp_path / "f", patience=QUICK)
    assert time.monotonic() - started < 10
    assert len(server.asked) == 2 and "resumes here" in (error.value.fix or "")


def test_a_few_new_bytes_in_each_attempt_are_no_progress(serving, tmp_path: Path) -> None:
    def say(connection: socket.socket, request: bytes) -> None:
        have = int(request.split(b"bytes=")[1].split(b"-")[0]) if b"Range" in request else 0
        range_of = b"Content-Range: bytes %d-999/1000\r\n" % have
        status = b"HTTP/1.1 206 Partial\r\n" + range_of if have else OK
        connection.sendall(status + b"Content-Length: %d\r\n\r\nx" % (1000 - have))

    server = serving(say)
    with pytest.raises(FetchError, match="3 tries"):
        fetch_url(f"{server.url}/f", tmp_path / "f", patience=Patience(tries=3, backoff=0.01, timeout=2))
    assert len(server.asked) == 3


def endless(connection: socket.socket, _: bytes) -> None:
    connection.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(3000):
        connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")


def test_no_more_is_read_than_the_catalogue_the_server_or_the_limit_allows(
    serving, tmp_path: Path, monkeypatch
) -> None:
    server = serving(endless)
    with pytest.raises(FetchError, match="more than 1000 bytes"):
        fetch_url(f"{server.url}/f", tmp_path / "f", size=1000, patience=QUICK)
    monkeypatch.setattr(transfer, "LARGEST", 200_000)
    with pytest.raises(FetchError, match="more than 200000 bytes"):
        fetch_url(f"{server.url}/f", tmp_path / "f", patience=QUICK)
    announced = serving(OK + b"Content-Length: 5000\r\n\r\n" + bytes(5000))
    with pytest.raises(FetchError, match="more than 1000 bytes"):
        fetch_url(f"{announced.url}/f", tmp_path / "f", size=1000, patience=QUICK)
    assert fetch_url(f"{announced.url}/g", tmp_path / "g", patience=QUICK).stat().st_size == 5000
    assert [p.name for p in tmp_path.iterdir()] == ["g"]


def test_a_file_larger_than_the_free_disk_is_refused_before_a_byte(serving, tmp_path: Path) -> None:
    server = serving(OK + b"Content-Length: 1000000000000000000\r\n\r\n" + bytes(100))
    with pytest.raises(FetchError, match="left"):
        fetch_url(f"{server.url}/f", tmp_path / "f", patience=QUICK)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("after", ["\u00b2", "nan", "inf", "1e400", "-5", "9" * 400, "yesterday", ""])
def test_a_pause_that_is_no_number_is_none(serving, tmp_path: Path, after: str) -> None:
    busy = b"HTTP/1.1 503 Busy\r\nRetry-After: " + after.encode() + b"\r\nContent-Length: 0\r\n\r\n"
    server, started = serving(busy), time.monotonic()
    with pytest.raises(FetchError, match="answered 503"):
        fetch_url(f"{server.url}/f", tmp_path / "f", patience=Patience(tries=2, backoff=0.01, longest=0.2))
    assert len(server.asked) == 2 and time.monotonic() - started < 5


PAGE = b"\n <!DOCTYPE html>\n<title>Log in</title>"


def test_a_login_page_with_status_200_is_no_file(serving, tmp_path: Path) -> None:
    server = serving(OK + b"Content-Length: %d\r\n\r\n" % len(PAGE) + PAGE)
    for name in ("f.zip", "f.json", "f"):
        with pytest.raises(FetchError, match="a web page") as error:
            fetch_url(f"{server.url}/{name}", tmp_path / name, patience=QUICK)
        assert "browser" in (error.value.fix or "") and not (tmp_path / name).exists()
    assert fetch_url(f"{server.url}/f.html", tmp_path / "f.html", patience=QUICK).read_bytes() == PAGE


def test_bytes_that_a_server_compressed_unasked_are_no_file(serving, tmp_path: Path) -> None:
    data = gzip.compress(b"content")
    server = serving(OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    with pytest.raises(FetchError, match="compresses the file"):
        fetch_url(f"{server.url}/f.json", tmp_path / "f.json", patience=QUICK)
    assert fetch_url(f"{server.url}/f.gz", tmp_path / "f.gz", patience=QUICK).read_bytes() == data


def test_another_range_than_was_asked_for_is_not_appended(serving, tmp_path: Path) -> None:
    def say(connection: socket.socket, request: bytes) -> None:
        if b"Range" in request:
            connection.sendall(b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-2/6\r\nContent-Length: 3\r\n\r\nabc")
        else:
            connection.sendall(OK + b"Content-Length: 6\r\n\r\nabcdef")

    (tmp_path / "f.part").write_bytes(b"abc")
    server = serving(say)
    assert fetch_url(f"{server.url}/f", tmp_path / "f", patience=QUICK).read_bytes() == b"abcdef"


@pytest.mark.parametrize("tag", [b'"a\xff"', b'"a\tb"', b'"' + b"x" * 3000 + b'"', b'W/"1"'])
def test_a_tag_that_cannot_be_sent_back_breaks_no_resume(serving, tmp_path: Path, tag: bytes) -> None:
    def say(connection: socket.socket, request: bytes) -> None:
        cut = 500 if b"Range" not in request else 1000
        connection.sendall(OK + b"ETag: " + tag + b"\r\nContent-Length: 1000\r\n\r\n" + bytes(cut))

    server = serving(say)
    assert fetch_url(f"{server.url}/f", tmp_path / "f", patience=QUICK).stat().st_size == 1000
    assert len(server.asked) == 2


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/f", "http://[::1", "gopher:x"])
def test_a_redirection_reads_no_local_file_and_ends(serving, tmp_path: Path, to: str) -> None:
    server = serving(b"HTTP/1.1 302 F\r\nLocation: " + to.encode() + b"\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(FetchError) as error:
        fetch_url(f"{server.url}/f", tmp_path / "f", patience=QUICK)
    assert error.value.fix and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff" * 1000,
        b"HTTP/1.1 999999 X\r\n\r\n",
        OK + b"Content-Length: x\r\n\r\nabc",
        OK + b"Content-Length: -5\r\n\r\nabc",
        OK + b"Content-Length: 5\r\nContent-Length: 7\r\n\r\nabc",
        OK + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        OK + b"X: " + b"x" * 300_000 + b"\r\n\r\n",
        OK + b"Content-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 407 Proxy\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_what_is_no_http_is_an_error_with_a_fix(serving, tmp_path: Path, answer: bytes) -> None:
    server = serving(answer)
    with pytest.raises(FetchError) as error:
        fetch_url(f"{server.url}/f", tmp_path / "f", patience=QUICK)
    assert error.value.fix and not (tmp_path / "f").exists()


# proxies -------------------------------------------------------------------------------------------------------------

FAULTY = [
    ("NO_PROXY", "localhost,[::1]", "the entry [::1]"),
    ("no_proxy", "fe80::/10", "the entry fe80::/10"),
    ("NO_PROXY", "[::1]:8000", "the entry"),
    ("ALL_PROXY", "socks4://127.0.0.1:1080", "no proxy that can be used"),
    ("HTTPS_PROXY", "http://me:secret@host:port", "no proxy that can be used"),
    ("http_proxy", "ftp://127.0.0.1:1", "no proxy that can be used"),
    ("ALL_PROXY", "http://", "no proxy that can be used"),
]


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*net.PROXIES, "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


@pytest.mark.parametrize(("name", "value", "message"), FAULTY)
def test_a_faulty_proxy_variable_is_named_and_an_own_address_needs_none(
    serving, tmp_path: Path, no_proxy: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    no_proxy.setenv(name, value)
    with pytest.raises(FetchError) as error:
        fetch_url("http://example.org/f", tmp_path / "f", patience=QUICK)
    assert name in error.value.found and message in error.value.found and f"unset {name}" in (error.value.fix or "")
    assert "secret" not in str(error.value)
    server = serving(OK + b"Content-Length: 3\r\n\r\nabc")
    assert fetch_url(f"{server.url}/f", tmp_path / "f", patience=QUICK).read_bytes() == b"abc"


def test_a_socks_proxy_without_its_package_says_what_to_install(tmp_path: Path, no_proxy: pytest.MonkeyPatch) -> None:
    no_proxy.setattr(net, "find_spec", lambda name: None)
    no_proxy.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    with pytest.raises(FetchError, match=r"ALL_PROXY=socks5://127.0.0.1:1080") as error:
        fetch_url("http://example.org/f", tmp_path / "f", patience=QUICK)
    assert "socksio" in (error.value.fix or "")


@pytest.mark.parametrize(
    "value", ["example.org", ".example.org,localhost", "::1,10.0.0.0/8", "*", "host:80", " a , b "]
)
def test_usual_values_of_no_proxy_are_accepted(no_proxy: pytest.MonkeyPatch, value: str) -> None:
    no_proxy.setenv("NO_PROXY", value)
    no_proxy.setenv("HTTP_PROXY", "127.0.0.1:9")
    net.refuse_proxies()
    net.open_client("http://example.com").close()


def test_a_proxy_that_refuses_is_named(tmp_path: Path, no_proxy: pytest.MonkeyPatch) -> None:
    no_proxy.setenv("http_proxy", "http://me:secret@127.0.0.1:9")
    with pytest.raises(FetchError, match=r"through the proxy http_proxy=http://127.0.0.1:9") as error:
        fetch_url("http://example.org/f", tmp_path / "f", patience=QUICK)
    assert "NO_PROXY" in (error.value.fix or "") and "secret" not in str(error.value)
    no_proxy.setenv("no_proxy", "example.org")
    assert net.proxy_of("http://example.org/f") is None


def test_a_body_is_bounded_also_when_it_is_compressed(serving) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    twice = gzip.compress(bomb)
    for data, encoding in ((bomb, b"gzip"), (twice, b"gzip, gzip"), (b"not gzip", b"gzip"), (bytes(2_000_000), b"")):
        server = serving(OK + b"Content-Encoding: " + encoding + b"\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        with (
            net.open_client(server.url) as client,
            net.exchange(client, "GET", server.url, seconds=5) as (response, _),
            pytest.raises((net.TooLarge, ValueError)),
        ):
            net.read_body(response, 1_000_000)
    server = serving(OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"text"))
    with net.open_client(server.url) as client, net.exchange(client, "GET", server.url, seconds=5) as (response, _):
        assert net.read_body(response, 1000) == b"text"
