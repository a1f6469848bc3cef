"""An HTTP client for OpenAI-compatible endpoints: evaluated models (`OpenAIBackend`) and judges (`Judge`).

    endpoint = Endpoint("http://localhost:8000/v1", key=os.environ.get("VLM_API_KEY"), rate=60)
    endpoint.chat({"model": "m", "messages": [...]}, read=content_of)

A busy server is asked again after a pause that doubles, or that it names (Retry-After). All threads share one pace: a
pause that the server asks for holds for every request, and at most `rate` requests start in a minute. A parameter that
the server refuses is renamed or left out from then on (`dialect`).
"""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpx

from vlm.core.errors import ConfigError, FetchError
from vlm.core.net import TooLarge, check_key, exchange, open_client, read_body, reason_of, retry_after, server_time
from vlm.core.retry import Backoff
from vlm.core.text import printable
from vlm.eval.backends.dialect import Dialect, message_of

T = TypeVar("T")
RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
"""HTTP codes of faults that pass. After any other code than these and 200, asking again is useless."""

LONGEST = 300.0
"""Longest pause in seconds that a server may ask for; with a longer one the request fails."""

LARGEST = 32 << 20
"""Most bytes (34 MB) of an answer: a long reply has some hundred thousand, ten times as many when it is streamed."""

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


@dataclass(frozen=True)
class Answer:
    """A response that was read to its end: its headers, and its body as bytes."""

    response: httpx.Response
    body: bytes

    @property
    def text(self) -> str:
        """The body as text; bytes that are no UTF-8 are replaced."""
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """Return the body as JSON; the events of a streamed completion are joined to a whole one.

        Raises:
            ValueError: It is no JSON.
        """
        return _joined(self.text) if self.body.lstrip()[:5] in (b"data:", b"event") else json.loads(self.body)


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
        timeout: Seconds until an answer is whole.
        rate: Requests a minute at most; None: any number.
        purpose: What error messages call it.

    Raises:
        ConfigError: `url` is no HTTP address, or holds credentials; `key` is nothing that a header carries.
        FetchError: A proxy variable that cannot be followed.

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
        if key:
            check_key(key, f"the key of the {purpose}")
        self.url, self.attempts, self.wait, self._key = url.rstrip("/"), attempts, wait, key
        self.pace = Pace(60 / rate if rate else 0.0)
        self.timeout, self.dialect = timeout, Dialect()
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._client = open_client(url, timeout=timeout, headers=headers)

    def chat(self, body: dict[str, Any], read: Callable[[Any], T]) -> T:
        """Send a chat completion request; return its answer (JSON) as `read` understands it.

        Raises:
            Unanswered: No answer after all attempts.
            Nonsense: The last answer was no JSON, or `read` failed on it.
        """
        while True:
            sent = self.dialect.apply(body)
            try:
                return self._patiently("POST", "/chat/completions", lambda answer: read(_whole(answer)), json=sent)
            except Unanswered as error:
                other = self.dialect.apply(body) != sent  # another thread has learned meanwhile
                if not other and not self.dialect.learn(error.status, error.body, body):
                    raise

    def models(self) -> tuple[list[dict[str, Any]], datetime]:
        """Return the models that the server lists, and the time on its clock; no models when it has no list.

        Raises:
            Unanswered: No answer after all attempts.
            Nonsense: The last answer was no list of models.
        """
        try:
            return self._patiently(
                "GET", "/models", lambda answer: (_cards(answer.json()), server_time(answer.response))
            )
        except Unanswered as error:
            if error.status in NO_LIST:
                return [], datetime.now(UTC)
            raise

    def fault(self, body: dict[str, Any]) -> Unanswered | None:
        """Return what is wrong with the server's answer to a chat completion request, asked once; None with nothing."""
        try:
            self._once(
                "POST", "/chat/completions", lambda answer: _whole(answer)["choices"][0], json=self.dialect.apply(body)
            )
        except Unanswered as error:
            return error
        return None

    def _patiently(self, method: str, path: str, read: Callable[[Answer], T], **request: Any) -> T:
        backoff = Backoff(tries=self.attempts, first=self.wait)
        while True:
            self.pace.wait()
            try:
                return self._once(method, path, read, **request)
            except Unanswered as error:
                if error.final or not backoff.again():
                    raise

    def _once(self, method: str, path: str, read: Callable[[Answer], T], **request: Any) -> T:
        url = self.url + path
        try:
            with exchange(self._client, method, url, seconds=self.timeout, **request) as (response, _):
                answer = Answer(response, read_body(response, LARGEST))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unanswered(reason_of(error, url)) from error
        except (TooLarge, ValueError) as error:
            raise Nonsense(f"HTTP {response.status_code}: {error}", status=response.status_code, final=True) from error
        if response.status_code != 200:
            raise self._failure(answer, response.status_code)
        try:
            return read(answer)
        except _ErrorInside as error:
            raise self._failure(answer, error.status) from error
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise Nonsense(f"no {path[1:].replace('/', ' ').removesuffix('s')}: {self._shown(answer)!r}") from error

    def _failure(self, answer: Answer, code: int) -> Unanswered:
        found, final = f"HTTP {code}: {self._shown(answer)}", code not in RETRIED
        pause = retry_after(answer.response)
        if not final and pause:
            if pause > LONGEST:
                return Unanswered(f"{found} (asks for a pause of {pause:.0f} s)", status=code, final=True)
            self.pace.pause(pause)
        return Unanswered(found, status=code, body=answer.text[:2000], final=final)

    def _shown(self, answer: Answer) -> str:
        """Return the message of a response without the key, which some servers repeat when they refuse it."""
        text = answer.text.replace(self._key, "***") if self._key else answer.text
        return printable(message_of(text[:100_000]))


class _ErrorInside(Exception):
    """An error that came with status 200; `status` is the code that it names, 502 where it names none."""

    def __init__(self, error: Any):
        code = error.get("code") if isinstance(error, dict) else None
        self.status = code if isinstance(code, int) and 400 <= code < 600 else 502
        super().__init__(self.status)


def _whole(answer: Answer) -> Any:
    """Return the JSON of a chat completion. Raises _ErrorInside for an error that came in its place."""
    found = answer.json()
    if isinstance(found, dict) and found.get("error") and not found.get("choices"):
        raise _ErrorInside(found["error"])
    return found


def _joined(text: str) -> Any:
    """Return the chat completion that the events of a stream add up to; an error among them comes alone."""
    content, reasoning, reason, refusal = [], [], None, None
    for line in text.split("\n"):
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if not data or data == "[DONE]":
            continue
        event = json.loads(data)
        if event.get("error"):
            return event
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or choice.get("message") or {}
            content += [delta["content"]] if delta.get("content") else []
            thought = delta.get("reasoning_content") or delta.get("reasoning")
            reasoning += [thought] if thought else []
            refusal = delta.get("refusal") or refusal
            reason = choice.get("finish_reason") or reason
    if reason is None:
        raise ValueError("a stream that was cut: no reason for its end")
    said = "".join(content) if content or not reasoning else None
    message = {"role": "assistant", "content": said, "reasoning_content": "".join(reasoning), "refusal": refusal}
    return {"choices": [{"message": message, "finish_reason": reason}]}


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
