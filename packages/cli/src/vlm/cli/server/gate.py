"""What every request passes first: key, host, origin, and the size of its body, counted while it arrives.

Nothing here needs a model.
"""

import asyncio
import hmac
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import Protocol
from urllib.parse import unquote, urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY = [
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]

BODY_SECONDS = 60
"""Longest time that a request may take to arrive."""

Log = Callable[[str], None]
"""Function that takes one line for each request."""


class RequestError(Exception):
    """A request that cannot be answered: HTTP status and OpenAI's error fields."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None, wait: int = 0
    ):
        super().__init__(message)
        kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(status)
        self.status, self.wait = status, wait
        self.body = {
            "error": {
                "message": message,
                "type": kind or ("server_error" if status >= 500 else "invalid_request_error"),
                "param": param,
                "code": code,
            }
        }


class GateLimits(Protocol):
    """What the gate asks of the settings of a server."""

    @property
    def api_key(self) -> str | None:
        """The key that clients must send; None: there is none."""

    @property
    def max_body(self) -> int:
        """Most bytes of a request."""

    @property
    def max_bodies(self) -> int:
        """Most bytes of all requests that are here."""

    @property
    def names(self) -> frozenset[str] | None:
        """Names by which the server may be asked for; None: any."""


class Gate:
    """Refuses a request, or passes it on; adds the security headers to every answer.

    `held` is the number of bytes of all bodies that are here.
    """

    def __init__(self, app: ASGIApp, settings: GateLimits, log: Log):
        self.app, self.settings, self.log = app, settings, log
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = message.get("headers", [])
                names = {name.lower() for name, _ in own}  # a report has a policy of its own
                message["headers"] = [*own, *(pair for pair in SECURITY if pair[0] not in names)]
            await send(message)

        body = bytearray()
        try:
            if await self._arrived(scope, receive, secured, body):
                await self.app(scope, _replayed(bytes(body), receive), secured)
        finally:
            self.held -= len(body)

    async def _arrived(self, scope: Scope, receive: Receive, send: Send, body: bytearray) -> bool:
        """Fill the body, or refuse the request; return whether it is whole."""
        try:
            self._check(scope)
            async with asyncio.timeout(BODY_SECONDS):
                return await self._read(receive, body)
        except TimeoutError:
            error = RequestError(f"the request took more than {BODY_SECONDS} seconds to arrive", status=408)
        except RequestError as refused:
            error = refused
        self.log(refusal_line(scope["method"], scope["path"], error))
        await answer_error(error)(scope, receive, send)
        return False

    async def _read(self, receive: Receive, body: bytearray) -> bool:
        """Fill the body; False for a client that left. Raises RequestError as soon as it is too large."""
        limits, more = self.settings, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            piece = message.get("body", b"")
            more = message.get("more_body", False)
            body += piece
            self.held += len(piece)
            if len(body) > limits.max_body:
                raise RequestError(
                    f"the request has more than {limits.max_body:,} bytes", status=413, code="request_too_large"
                )
            if self.held > limits.max_bodies:
                raise RequestError(
                    f"the requests that are here have more than {limits.max_bodies:,} bytes", status=429, wait=5
                )
        return True

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        key, host = self.settings.api_key, headers.get(b"host", b"").decode("latin-1")
        if key and scope["path"].startswith(("/v1/", "/vlm/")):
            given = headers.get(b"authorization", b"").removeprefix(b"Bearer ") or cookie_key(headers)
            if not hmac.compare_digest(given, key.encode()):
                raise RequestError("wrong or missing key", status=401, code="invalid_api_key")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin.split("://")[-1] != host:
            raise RequestError("requests from pages of another site are refused", status=403, code="cross_site")
        names = self.settings.names
        checked = names is not None and scope["path"] != "/health"  # a balancer asks that without a name
        if checked and host_name(host) not in (names or ()):  # a page whose name was pointed at this address
            raise RequestError(
                f"this server is not {host[:80]!r}; start it with --allow-host", status=403, code="unknown_host"
            )


def host_name(host: str) -> str:
    """Return the name in a Host header, without the port.

    >>> host_name("localhost:8000"), host_name("[::1]:8000")
    ('localhost', '::1')
    """
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def refusal_line(method: str, path: str, error: RequestError) -> str:
    """Return the line of the log for a request that was refused."""
    return f"{method} {path[:100]} {error.status} {str(error)[:300]}".splitlines()[0]


def answer_error(error: RequestError) -> JSONResponse:
    """Return an error as a response."""
    headers = {"Retry-After": str(error.wait)} if error.wait else None
    return JSONResponse(error.body, status_code=error.status, headers=headers)


def cookie_key(headers: dict[bytes, bytes]) -> bytes:
    """Return the key that our pages keep in a cookie: pictures and pages that are opened can send no other header."""
    try:
        cookie = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1")).get("vlm-key")
    except CookieError:
        return b""
    return unquote(cookie.value).encode() if cookie else b""


def answer_errors(app: FastAPI, log: Log) -> None:
    """Let every refusal of an application have the form of OpenAI's errors, and a line in the log."""

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> JSONResponse:
        log(refusal_line(request.method, request.url.path, error))
        return answer_error(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return await refused(request, RequestError(f"{where}: {first['msg']}".removeprefix(": "), param=where or None))

    @app.exception_handler(HTTPException)
    async def missing(request: Request, error: HTTPException) -> JSONResponse:
        return await refused(request, RequestError(f"{request.url.path}: {error.detail}", status=error.status_code))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:  # the server prints the traceback
        return await refused(request, RequestError(f"a fault of the server: {type(error).__name__}", status=500))
