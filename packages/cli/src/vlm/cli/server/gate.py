"""What every request passes first: key, origin, size; and how a refusal looks. Nothing here needs a model."""

import asyncio
import hmac
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import Protocol
from urllib.parse import unquote

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


class Gate:
    """What every request passes first: key, origin, and the size of its body, counted while it arrives."""

    def __init__(self, app: ASGIApp, settings: GateLimits):
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on with the security headers added to its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = message.get("headers", [])
                names = {name.lower() for name, _ in own}  # a report has a policy of its own
                message["headers"] = [*own, *(pair for pair in SECURITY if pair[0] not in names)]
            await send(message)

        try:
            self._check(scope, headers)
            async with asyncio.timeout(BODY_SECONDS):
                body = await self._body(receive)
        except TimeoutError:
            late = RequestError(f"the request took more than {BODY_SECONDS} seconds to arrive", status=408)
            await answer_error(late)(scope, receive, secured)
            return
        except RequestError as error:
            await answer_error(error)(scope, receive, secured)
            return
        given = False

        async def replayed() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replayed, secured)

    async def _body(self, receive: Receive) -> bytes:
        """Return the whole body. Raises RequestError as soon as it is too large."""
        body, more = bytearray(), True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.settings.max_body:
                raise RequestError(
                    f"the request has more than {self.settings.max_body:,} bytes", status=413, code="request_too_large"
                )
        return bytes(body)

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        key = self.settings.api_key
        if key and scope["path"].startswith(("/v1/", "/vlm/")):
            given = headers.get(b"authorization", b"").removeprefix(b"Bearer ") or cookie_key(headers)
            if not hmac.compare_digest(given, key.encode()):
                raise RequestError("wrong or missing key", status=401, code="invalid_api_key")
        origin, host = headers.get(b"origin"), headers.get(b"host", b"")
        if origin and origin.split(b"://")[-1] != host:
            raise RequestError("requests from pages of another site are refused", status=403, code="cross_site")


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


Log = Callable[[str], None]
"""Function that takes one line for each request."""


def answer_errors(app: FastAPI, log: Log) -> None:
    """Let every refusal of an application have the form of OpenAI's errors, and a line in the log."""

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> JSONResponse:
        log(f"{request.method} {request.url.path} {error.status} {error}".splitlines()[0])
        return answer_error(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return await refused(request, RequestError(f"{where}: {first['msg']}".removeprefix(": "), param=where or None))

    @app.exception_handler(HTTPException)
    async def missing(request: Request, error: HTTPException) -> JSONResponse:
        return await refused(request, RequestError(f"{request.url.path}: {error.detail}", status=error.status_code))
