"""The one HTTP client for OpenAI-compatible endpoints: evaluated models (`OpenAIBackend`) and judges (`Judge`).

endpoint = Endpoint("http://localhost:8000/v1", key=os.environ.get("VLM_API_KEY"), rate=60)
endpoint.chat({"model": "m", "messages": [...]}, read=content_of)

Busy servers are asked again after a pause that doubles, or that the server names (Retry-After). All threads share one
pace: a pause that the server asks for holds for every request, and `rate` requests start in a minute at most.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from vlm.core.errors import ConfigError, FetchError

T = TypeVar("T")
RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
"""HTTP codes that pass; with every other one but 200 asking again is useless."""

LONGEST = 300.0
"""Seconds: a server that asks for a longer pause than this is given up."""

NO_LIST = {404, 405, 501}
"""HTTP codes of a server that does not list its models."""


class Unanswered(FetchError):
    """No answer. `status` is the HTTP code, None when there was no response; `body` what the server said with it;
    `final`: asking again is useless."""

    def __init__(self, found: str, *, status: int | None = None, body: str = "", final: bool = False):
        super().__init__(found)
        self.status, self.body, self.final = status, body, final


class Nonsense(Unanswered):
    """An answer that is not what was asked for."""


class Pace:
    """When requests may start: `interval` seconds apart, and none before a pause has ended."""

    def __init__(self, interval: float = 0.0):
        self.interval, self._next, self._lock = interval, 0.0, threading.Lock()

    def wait(self) -> None:
        """Return when the next request may start."""
        while True:
            with self._lock:
                delay = self._next - time.monotonic()
                if delay <= 0:
                    self._next = time.monotonic() + self.interval
                    return
            time.sleep(delay)

    def pause(self, seconds: float) -> None:
        """Let no request start in the next `seconds`."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class Endpoint:
    """`url`: up to `/v1`; `key`: sent as bearer token, and never shown; `wait`: seconds before the first repetition,
    doubled each time; `timeout`: seconds for one answer; `rate`: requests a minute at most. May be used by threads.

    Raises:
        ConfigError: `url` is none.
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
        limits = httpx.Limits(max_connections=None)  # whoever starts the threads limits them
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=timeout, headers=headers, limits=limits)

    def chat(self, body: dict[str, Any], read: Callable[[Any], T]) -> T:
        """`read` of the answer (JSON) to a chat completion request.

        Raises:
            Unanswered: after all attempts. Nonsense: the last answer was no JSON, or `read` could not read it.
        """
        return self._patiently("POST", "/chat/completions", lambda response: read(response.json()), json=body)

    def models(self) -> tuple[list[dict[str, Any]], datetime]:
        """What the server lists at `/models` (nothing, when it has no such list), and the time on its clock.

        Raises:
            Unanswered, Nonsense: as `chat`.
        """
        try:
            return self._patiently("GET", "/models", lambda response: (_cards(response.json()), server_time(response)))
        except Unanswered as error:
            if error.status in NO_LIST:
                return [], datetime.now(UTC)
            raise

    def answers(self, body: dict[str, Any]) -> bool:
        """Whether the server answers this chat completion request just now; asked once."""
        try:
            return self._client.post(self.url + "/chat/completions", json=body).status_code == 200
        except httpx.HTTPError:
            return False

    def _patiently(self, method: str, path: str, read: Callable[[httpx.Response], T], **request: Any) -> T:
        failure = Unanswered("not asked")
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.wait * 2 ** (attempt - 1))
            self.pace.wait()
            try:
                return self._once(method, path, read, **request)
            except Unanswered as error:
                failure = error
            if failure.final:
                break
        raise failure

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
        """The beginning of what the server said; some repeat the key that they refuse."""
        text = response.text
        return (text.replace(self._key, "***") if self._key else text)[:200]


def _cards(answer: Any) -> list[dict[str, Any]]:
    return [card for card in answer["data"] if isinstance(card["id"], str)]


def content_of(answer: Any) -> str:
    """The text of a chat completion. Raises LookupError or TypeError when there is none."""
    content = answer["choices"][0]["message"]["content"]
    if not isinstance(content, str):
        raise TypeError(f"content is {content!r}")
    return content


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that a server asks to wait (Retry-After: a number or a date), None when it does not."""
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
    """The time on the server's clock: its `Date` header, ours without one."""
    try:
        return parsedate_to_datetime(response.headers["Date"])
    except (LookupError, ValueError):
        return datetime.now(UTC)
