"""An HTTP client for OpenAI-compatible endpoints: evaluated models (`OpenAIBackend`) and judges (`Judge`).

    endpoint = Endpoint("http://localhost:8000/v1", key=os.environ.get("VLM_API_KEY"), rate=60)
    endpoint.chat({"model": "m", "messages": [...]}, read=content_of)

A busy server is asked again after a pause that doubles, or that it names (Retry-After). All threads share one pace: a
pause that the server asks for holds for every request, and at most `rate` requests start in a minute.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from vlm.core.errors import ConfigError, FetchError
from vlm.core.retry import Backoff

T = TypeVar("T")
RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
"""HTTP codes of faults that pass. After any other code than these and 200, asking again is useless."""

LONGEST = 300.0
"""Longest pause in seconds that a server may ask for; with a longer one the request fails."""

NO_LIST = {404, 405, 501}
"""HTTP codes of a server that does not list its models."""


class Unanswered(FetchError):
    """The server did not answer.

    `status` is the HTTP code, None without a response; `body` the text of the response; `final`: asking again is
    useless.
    """

    def __init__(self, found: str, *, status: int | None = None, body: str = "", final: bool = False):
        super().__init__(found)
        self.status, self.body, self.final = status, body, final


class Nonsense(Unanswered):
    """The server answered with something else than what was asked for."""


class Pace:
    """The times at which requests may start: `interval` seconds apart, and none during a pause."""

    def __init__(self, interval: float = 0.0):
        self.interval, self._next, self._lock = interval, 0.0, threading.Lock()

    def wait(self) -> None:
        """Sleep until the next request may start."""
        while True:
            with self._lock:
                delay = self._next - time.monotonic()
                if delay <= 0:
                    self._next = time.monotonic() + self.interval
                    return
            time.sleep(delay)

    def pause(self, seconds: float) -> None:
        """Let no request start within the next `seconds`."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class Endpoint:
    """An OpenAI-compatible endpoint; threads may share it.

    Args:
        url: Address up to `/v1`, without a user name or password.
        key: Sent as bearer token, and never shown.
        attempts: Requests before an error is raised.
        wait: Seconds before the second attempt; doubled each time.
        timeout: Seconds to wait for one answer.
        rate: Requests a minute at most; None: any number.
        purpose: What error messages call it.

    Raises:
        ConfigError: `url` is no HTTP address, or holds credentials.

    >>> endpoint = Endpoint("http://localhost:8000/v1/", rate=60)
    >>> endpoint.url, endpoint.pace.interval
    ('http://localhost:8000/v1', 1.0)
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        attempts: int = 5,
        wait: float = 1.0,
        timeout: float = 60.0,
        rate: float | None = None,
        purpose: str = "server",
    ):
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{purpose} endpoint {url!r}", expected="http://… or https://…, up to /v1")
        if "@" in url:  # addresses are written into results
            raise ConfigError(f"{purpose} endpoint with a name or a password in it", expected="an environment variable")
        self.url, self.attempts, self.wait, self._key = url.rstrip("/"), attempts, wait, key
        self.pace = Pace(60 / rate if rate else 0.0)
        limits = httpx.Limits(max_connections=None)  # callers limit their threads
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=timeout, headers=headers, limits=limits)

    def chat(self, body: dict[str, Any], read: Callable[[Any], T]) -> T:
        """Send a chat completion request; return its answer (JSON) as `read` understands it.

        Raises:
            Unanswered: No answer after all attempts.
            Nonsense: The last answer was no JSON, or `read` failed on it.
        """
        return self._patiently("POST", "/chat/completions", lambda response: read(response.json()), json=body)

    def models(self) -> tuple[list[dict[str, Any]], datetime]:
        """Return the models that the server lists, and the time on its clock; no models when it has no list.

        Raises:
            Unanswered: No answer after all attempts.
            Nonsense: The last answer was no list of models.
        """
        try:
            return self._patiently("GET", "/models", lambda response: (_cards(response.json()), server_time(response)))
        except Unanswered as error:
            if error.status in NO_LIST:
                return [], datetime.now(UTC)
            raise

    def answers(self, body: dict[str, Any]) -> bool:
        """Tell whether the server answers this chat completion request; asked once."""
        try:
            return self._client.post(self.url + "/chat/completions", json=body).status_code == 200
        except httpx.HTTPError:
            return False

    def _patiently(self, method: str, path: str, read: Callable[[httpx.Response], T], **request: Any) -> T:
        backoff = Backoff(tries=self.attempts, first=self.wait)
        while True:
            self.pace.wait()
            try:
                return self._once(method, path, read, **request)
            except Unanswered as error:
                if error.final or not backoff.again():
                    raise

    def _once(self, method: str, path: str, read: Callable[[httpx.Response], T], **request: Any) -> T:
        try:
            response = self._client.request(method, self.url + path, **request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unanswered(f"{type(error).__name__}: {error}") from error
        if response.status_code != 200:
            raise self._failure(response)
        try:
            return read(response)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Nonsense(f"no {path[1:].replace('/', ' ').removesuffix('s')}: {self._shown(response)!r}") from error

    def _failure(self, response: httpx.Response) -> Unanswered:
        code = response.status_code
        found, final = f"HTTP {code}: {self._shown(response)}", code not in RETRIED
        pause = retry_after(response)
        if not final and pause:
            if pause > LONGEST:
                return Unanswered(f"{found} (asks for a pause of {pause:.0f} s)", status=code, final=True)
            self.pace.pause(pause)
        return Unanswered(found, status=code, body=response.text[:2000], final=final)

    def _shown(self, response: httpx.Response) -> str:
        """Return the start of a response without the key, which some servers repeat when they refuse it."""
        text = response.text
        return (text.replace(self._key, "***") if self._key else text)[:200]


def _cards(answer: Any) -> list[dict[str, Any]]:
    return [card for card in answer["data"] if isinstance(card["id"], str)]


def content_of(answer: Any) -> str:
    """Return the text of a chat completion; text parts are joined.

    Raises:
        LookupError: The answer has no message.
        TypeError: Its content is no text.
    """
    content = answer["choices"][0]["message"]["content"]
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part.get("type", "text") in ("text", "output_text"))
    if not isinstance(content, str):
        raise TypeError(f"content is {content!r}")
    return content


def retry_after(response: httpx.Response) -> float | None:
    """Return the seconds that a server asks to wait (Retry-After: a number or a date); None when it does not."""
    value = response.headers.get("Retry-After", "").strip()
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max((parsedate_to_datetime(value) - server_time(response)).total_seconds(), 0.0)
    except (ValueError, TypeError):  # absent, or neither; a date without a zone cannot be compared
        return None


def server_time(response: httpx.Response) -> datetime:
    """Return the time on the server's clock: its `Date` header, or the local time without one."""
    try:
        return parsedate_to_datetime(response.headers["Date"])
    except (LookupError, ValueError):
        return datetime.now(UTC)
