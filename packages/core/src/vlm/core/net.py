"""HTTP with limits on time and bytes, and errors that name the proxy or the certificate in the way.

    with open_client("https://example.org/a", timeout=30) as client:
        with exchange(client, "GET", "https://example.org/a", seconds=60) as (response, _):
            text = read_body(response, limit=1_000_000)

The timeouts of an HTTP client are those of one read: a server that sends a byte a second never meets one. `exchange`
closes the connection when the whole answer is late.
"""

import ipaddress
import math
import os
import re
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies_environment, proxy_bypass

import httpx

from vlm.core.errors import ConfigError, FetchError
from vlm.core.text import printable

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
"""Environment variables that name a proxy, also in lower case; NO_PROXY names hosts that need none."""


class TooLarge(Exception):
    """An answer with more bytes than its limit."""


class Watch:
    """Close the connections of one exchange when its time is up; `more` gives it time again.

    `over`: the time was up.
    """

    def __init__(self, seconds: float):
        self.seconds, self.over = seconds, False
        self._until, self._done = time.monotonic() + seconds, threading.Event()
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._wait, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def more(self, seconds: float) -> None:
        """Let the exchange go on for `seconds` from now."""
        self.seconds, self._until = seconds, time.monotonic() + seconds

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Note each connection that the HTTP client opens; the client calls it (its extension `trace`)."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            found = info["return_value"].get_extra_info("socket")
            if isinstance(found, socket.socket):
                self._sockets.append(found)
                if self.over:
                    self._cut()

    def _wait(self) -> None:
        while not self._done.wait(max(0.0, self._until - time.monotonic())):
            if time.monotonic() >= self._until:
                self.over = True
                self._cut()
                return

    def _cut(self) -> None:
        for connection in self._sockets:
            with suppress(OSError):  # closed already
                socket.socket.shutdown(connection, socket.SHUT_RDWR)


def open_client(url: str, **settings: Any) -> httpx.Client:
    """Return an HTTP client for `url`: through the environment's proxies, but none for an address of this machine.

    Each request has a connection of its own, which `exchange` can close.

    Raises:
        FetchError: A proxy variable that no client can follow.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    if is_loopback(url):
        return httpx.Client(trust_env=False, verify=httpx.create_ssl_context(), limits=limits, **settings)
    refuse_proxies()
    return httpx.Client(limits=limits, **settings)


@contextmanager
def exchange(
    client: httpx.Client, method: str, url: str, *, seconds: float, **request: Any
) -> Iterator[tuple[httpx.Response, Watch]]:
    """Send a request; yield its response, body unread, and the watch that ends it.

    Raises:
        httpx.ReadTimeout: The answer was not whole after `seconds`, or what `Watch.more` gave.
        httpx.HTTPError: Any other fault of the network.
    """
    with Watch(seconds) as watch:
        try:
            with client.stream(method, url, extensions={"trace": watch.trace}, **request) as response:
                yield response, watch
                if watch.over and not response.headers.keys() & {"content-length", "transfer-encoding"}:
                    raise httpx.ReadTimeout("")  # such a body ends with the connection: cut, it looks whole
        except (httpx.TransportError, OSError) as error:
            if watch.over:
                raise httpx.ReadTimeout(f"too slow: cut after {watch.seconds:g} s") from error
            raise


def read_body(response: httpx.Response, limit: int) -> bytes:
    """Return the body of a response, decompressed; never more than `limit` bytes are held.

    Raises:
        TooLarge: There are more.
        ValueError: It is compressed in another way than gzip or deflate, or damaged.
    """
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise ValueError(f"the answer is compressed with {printable(encoding, 40)}")
    inflate = zlib.decompressobj(47) if encoding not in ("", "identity") else None  # 47: gzip or zlib by its header
    body = bytearray()
    for chunk in response.iter_raw():
        try:
            body += inflate.decompress(chunk, limit + 1 - len(body)) if inflate else chunk
        except zlib.error as error:
            raise ValueError(f"the answer cannot be decompressed: {error}") from error
        if len(body) > limit:
            raise TooLarge(f"more than {limit:,} bytes")
    return bytes(body)


def check_key(key: str, where: str) -> None:
    """Check that an HTTP header can carry a key; the message never holds it.

    Raises:
        ConfigError: It has a space, a line break, or a character beyond ASCII.

    >>> check_key("sk-1", "--api-key")
    """
    if not re.fullmatch("[!-~]+", key):
        raise ConfigError(
            f"{where} has a space, a line break or a character beyond ASCII",
            expected="letters, digits and signs of ASCII, as HTTP headers carry them",
            fix="set it anew, without a line break at its end",
        )


def is_loopback(url: str) -> bool:
    """Return whether an address is one of this machine.

    >>> is_loopback("http://127.0.0.1:8000/v1"), is_loopback("http://[::1]/"), is_loopback("https://example.org")
    (True, True, False)
    """
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or host.endswith(".localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_proxies() -> None:
    """Check the environment's proxy variables.

    Raises:
        FetchError: One that an HTTP client cannot follow; the message names it.
    """
    for name in (*PROXIES, *(name.lower() for name in PROXIES)):
        value = os.environ.get(name, "").strip()
        scheme = value.split("://")[0].lower() if "://" in value else "http"
        if value and scheme in ("socks5", "socks5h") and find_spec("socksio") is None:
            raise FetchError(
                f"{name}={_hidden(value)}: a SOCKS proxy needs the package socksio",
                expected="an http:// or https:// proxy, or that package",
                fix=f"pip install socksio, or: unset {name}",
            )
        if value and not (scheme in ("http", "https", "socks5", "socks5h") and _is_address(value)):
            raise FetchError(
                f"{name}={_hidden(value)} is no proxy that can be used",
                expected="http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT",
                fix=f"correct it, or: unset {name}",
            )
    for name in ("NO_PROXY", "no_proxy"):
        for host in filter(None, (host.strip() for host in os.environ.get(name, "").split(","))):
            if not _is_host(host):
                raise FetchError(
                    f"{name} has the entry {printable(host)}, which cannot be read",
                    expected="names, IPv4 addresses, IPv6 addresses without brackets (::1)",
                    fix=f"correct it, or: unset {name}",
                )


def _is_address(value: str) -> bool:
    try:
        return bool(httpx.URL(value if "://" in value else f"http://{value}").host)
    except (httpx.InvalidURL, ValueError):
        return False


def _is_host(value: str) -> bool:
    with suppress(ValueError):
        return bool(ipaddress.ip_address(value))
    try:
        httpx.URL(value if "://" in value else f"all://*{value}")
    except (httpx.InvalidURL, ValueError):
        return False
    return value.count(":") < 2 or "://" in value


def proxy_of(url: str) -> str | None:
    """Return `VARIABLE=value` of the proxy that requests to `url` go through, without its password; None without."""
    if is_loopback(url):
        return None
    parts, proxies = urlsplit(url), getproxies_environment()
    if proxy_bypass(parts.hostname or "", proxies):
        return None
    kind = next((kind for kind in (parts.scheme, "all") if proxies.get(kind)), None)
    if kind is None:
        return None
    name = f"{kind}_proxy"
    return f"{name if os.environ.get(name) else name.upper()}={_hidden(proxies[kind])}"


def reason_of(error: BaseException, url: str) -> str:
    """Return what went wrong below HTTP, in one line, with the proxy that was asked instead of the server."""
    said = printable(f"{type(error).__name__}: {error}".rstrip(": "))
    proxy = proxy_of(url)
    return f"{said} (through the proxy {proxy})" if proxy else said


def network_fix(error: BaseException, url: str) -> str:
    """Return what to do about a fault below HTTP."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "name the certificate of your proxy or server: export SSL_CERT_FILE=FILE.pem"
    if proxy := proxy_of(url):
        name = proxy.split("=")[0]
        return f"correct or unset {name}, or add {urlsplit(url).hostname} to NO_PROXY, then rerun the same command"
    return "check the network and the proxy settings, then rerun the same command"


def _hidden(address: str) -> str:
    """Return a proxy's address without a user name and a password."""
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
    except ValueError:
        return "(not shown)"
    bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    return printable(bare if "://" in address else bare.removeprefix("http://"))


def retry_after(response: httpx.Response) -> float | None:
    """Return the seconds that a server asks to wait (Retry-After: a number or a date); None when it does not."""
    value = response.headers.get("Retry-After", "").strip()
    with suppress(ValueError):
        seconds = float(value)
        return max(seconds, 0.0) if math.isfinite(seconds) else None
    try:
        return max((parsedate_to_datetime(value) - server_time(response)).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):  # absent, or neither; a date without a zone cannot be compared
        return None


def server_time(response: httpx.Response) -> datetime:
    """Return the time on the server's clock: its `Date` header, or the local time without one."""
    try:
        return parsedate_to_datetime(response.headers["Date"])
    except (LookupError, ValueError, TypeError, OverflowError):
        return datetime.now(UTC)
