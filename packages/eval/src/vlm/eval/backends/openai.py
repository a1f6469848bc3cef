"""A model behind an OpenAI-compatible server (vLLM, SGLang, LMDeploy, a cloud) as a backend.

    endpoint = Endpoint("http://localhost:8000/v1", timeout=300)
    backend = OpenAIBackend(endpoint, "my-model", concurrency=8)
    run_evaluation(benchmark, backend, out, Options(batch_size=8), data=folder)

The server applies its own chat template, system text and image rule. Its weights cannot be hashed from outside: see
`OpenAIBackend.fingerprint`.
"""

import math
import re
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Any

from PIL import Image

from vlm.core.errors import ConfigError, FetchError, UnknownName, VlmError
from vlm.core.sample.records import Message
from vlm.core.text import printable
from vlm.eval.backends.base import BackendReply, Drawing, NoAnswer, Refused, Stopped, TooLong, text_with_placeholders
from vlm.eval.backends.dialect import FILTERED, TOO_LONG, words_of
from vlm.eval.backends.endpoint import Endpoint, Nonsense, Unanswered, content_of
from vlm.eval.backends.parts import NEWLINES, content_parts, image_url, png
from vlm.eval.keys import content_key
from vlm.eval.loaders.common import approximate_tokens

HOPELESS = {
    401: "give the server's key: export VLM_API_KEY=…, or name its variable with --api-key-env",
    402: "the account of this key has no credit",
    403: "the key, the country or a proxy is not allowed to use this model",
    404: "check --base-url (it ends in /v1) and --model",
    407: "the proxy wants a name and a password: http://NAME:PASSWORD@HOST:PORT",
    429: "the limit of this key is reached: wait, or send less with --rate and --concurrency",
}
"""HTTP codes (after all attempts) that every other question would get too -> what to do."""

SAME = 5
"""Refusals alike, without any answer, that are taken for everybody's when a greeting is refused in other words."""

IDENTITY = ("id", "created", "root", "parent", "owned_by", "max_model_len")
"""Keys of a model in `/models` that distinguish it from others."""


class ServerDown(Stopped):
    """The server does not answer, or refuses every question. The answers so far are kept."""

    def __init__(self, endpoint: Endpoint, failure: Unanswered):
        kept = "rerun the same command: the answers so far are kept"
        if isinstance(failure, Nonsense):
            found, fix = "sends no answers", f"check that --base-url is a chat server's, up to /v1, then {kept}"
        elif failure.status is not None and 400 <= failure.status < 500 and failure.status not in (*HOPELESS, 408):
            found, fix = "refuses every question", f"correct what it names, then {kept}"
        else:
            found, fix = (
                "does not answer",
                HOPELESS.get(failure.status or 0, "when it answers again") + f"; then {kept}",
            )
        super().__init__(FetchError(f"{endpoint.url} {found}: {failure.found}", fix=fix))


@dataclass(frozen=True)
class ServerReply:
    """A reply of the server: its text, stripped, and whether it ended before the budget.

    `note` says which settings the model refused, so that it answered without them.
    """

    text: str
    finished: bool
    note: str = ""


@dataclass
class Request:
    """An encoded question with its reply or error: a batch that is asked again in halves sends nothing twice."""

    messages: list[dict[str, Any]]
    outcome: ServerReply | VlmError | None = None


class OpenAIBackend:
    """A model that a server runs.

    Its weights cannot be hashed from outside: `fingerprint` covers the address, the name, and what `/models` says of
    the model.

    Args:
        endpoint: The server.
        model: The model's name there; None: the only one that the server lists.
        family: Model family whose prompts to use; "" is the benchmark table's own.
        concurrency: Requests at once.
        newline: After which images the server's template writes a newline: one of `NEWLINES`. `vlm serve` says that
            it takes parts as they are.
        drawing: How tokens are drawn; None takes the likeliest.

    Raises:
        ServerDown: The server does not answer.
        ConfigError: No model is named and the server lists none or several.
        UnknownName: The server lists other models; or no such `newline`.

    >>> backend = OpenAIBackend(Endpoint("http://localhost:8000/v1"), "my-model")  # doctest: +SKIP
    """

    batch_tokens = math.inf
    """No limit: nothing is padded here."""

    def __init__(
        self,
        endpoint: Endpoint,
        model: str | None = None,
        *,
        family: str = "",
        concurrency: int = 8,
        newline: str = "front",
        drawing: Drawing | None = None,
    ):
        if newline not in NEWLINES:
            raise UnknownName("newline", newline, NEWLINES)
        self.endpoint, self.family, self.concurrency = endpoint, family, concurrency
        self._failures: Counter[str] = Counter()
        self._answered, self._lock = False, threading.Lock()
        self._hopeless: Unanswered | None = None
        try:
            card, exact = _card(endpoint, model)
        except Unanswered as error:
            raise ServerDown(endpoint, error) from error
        self.model = card["id"]
        self.fingerprint = content_key(base_url=endpoint.url, **card)
        self.newline = "none" if exact else newline
        self._sampling = drawing.settings if drawing else {"temperature": 0}
        self._own = {"vlm": {"exact": True}} if exact else {}
        self.settings = {
            "backend": "openai",
            "base_url": endpoint.url,
            "model": self.model,
            **self._sampling,
            "parts": "exact" if exact else f"newline after image: {newline}",
        }

    @property
    def note(self) -> str:
        """Which settings the model refused, so that its answers were made without them; empty without any."""
        return self.endpoint.dialect.note

    def count_tokens(self, text: str) -> int:
        """Estimate tokens at four characters each: the server's tokenizer is not known."""
        return approximate_tokens(text)

    def prompt(self, messages: list[Message]) -> str:
        """Return roles and texts, media as `<image>` or `<video>`; the server applies its own template."""
        return "\n".join(f"{m['role']}: {text_with_placeholders(m['content'])}" for m in messages)

    def cost(self, messages: list[Message]) -> float:
        """Estimate the tokens of the text."""
        # without media: a server computes a shared image once by itself, so its questions may be sent at once
        return 1 + len(self.prompt(messages)) / 4

    def encode(self, item_id: str, messages: list[Message]) -> Request:
        """Return the messages in the server's protocol, images as base64.

        Raises:
            MediaError: An image or video that is missing or cannot be decoded.
        """
        return Request([{"role": m["role"], "content": content_parts(m, self.newline)} for m in messages])

    def answer(self, encoded: Sequence[Request], *, max_new_tokens: int, min_new_tokens: int) -> Sequence[BackendReply]:
        """Return one reply for each question. Servers that refuse `min_tokens` are asked without it.

        Raises:
            ServerDown: The server has stopped answering.
            Refused: The server refuses the first question without a reply; TooLong for its length.
            Unanswered: The first question without a reply failed otherwise.
        """
        todo = [request for request in encoded if request.outcome is None]
        limits = {"max_tokens": max_new_tokens} | ({"min_tokens": min_new_tokens} if min_new_tokens else {})
        self._at_once(todo, limits)
        if self._hopeless is not None:
            raise ServerDown(self.endpoint, self._hopeless) from self._hopeless
        for failure in [r.outcome for r in todo if isinstance(r.outcome, Unanswered)]:
            self._check_alive(failure)
        return [_reply(request) for request in encoded]

    def recover(self) -> None:
        """Do nothing: the memory is the server's."""

    def _at_once(self, todo: Sequence[Request], limits: dict[str, int]) -> None:
        """Send the questions, `concurrency` at a time, and store their outcomes."""
        # daemon threads: Ctrl-C must not wait for a slow server
        waiting: SimpleQueue[Request | None] = SimpleQueue()
        threads = [threading.Thread(target=self._work, args=(waiting, limits), daemon=True) for _ in todo]
        threads = threads[: self.concurrency]
        for request in [*todo, *[None] * len(threads)]:
            waiting.put(request)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, waiting: "SimpleQueue[Request | None]", limits: dict[str, int]) -> None:
        while request := waiting.get():
            if self._hopeless is not None:
                request.outcome = self._hopeless
                continue
            try:
                request.outcome = self._ask(request, limits)
            except Exception as error:  # noqa: BLE001 (a thread that ends would leave its question without an outcome)
                request.outcome = Unanswered(printable(f"{type(error).__name__}: {error}"))
            self._count(request)

    def _count(self, request: Request) -> None:
        """Note an outcome. Until the first answer, find out whether a refusal is everybody's before it is recorded."""
        failure = request.outcome
        with self._lock:
            if not isinstance(failure, Unanswered):
                self._answered = True
            if self._answered or not isinstance(failure, Unanswered) or not _is_refusal(failure):
                return
            self._failures[_sign(failure)] += 1
            pictures = any(part.get("type") == "image_url" for m in request.messages for part in m["content"])
            other = self.endpoint.fault(self._greeting(picture=pictures))
            if other is None:
                self._answered = True  # the server answers: it is the question's own fault
            elif _sign(other) == _sign(failure) or self._failures[_sign(failure)] >= SAME:
                self._hopeless = failure

    def _greeting(self, *, picture: bool) -> dict[str, Any]:
        """Return a question that any server answers, with a small picture or without."""
        content: list[dict[str, Any]] = [{"type": "text", "text": "Say yes."}]
        if picture:
            content.insert(0, image_url(png(Image.new("RGB", (64, 64)))))
        message = {"role": "user", "content": content if picture else "Say yes."}
        return {"model": self.model, "messages": [message], "max_tokens": 16, "temperature": 0}

    def _ask(self, request: Request, limits: dict[str, int]) -> ServerReply | VlmError:
        body = {"model": self.model, "messages": request.messages, **limits, **self._sampling, **self._own}
        try:
            reply = self.endpoint.chat(body, _read_reply)
            # half of a surrogate pair, which JSON can name, cannot be written to a file
            whole = reply.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return replace(reply, text=whole, note=self.endpoint.dialect.note)
        except (NoAnswer, Refused) as error:
            return error
        except Unanswered as error:
            return _refusal(error) or error

    def _check_alive(self, failure: Unanswered) -> None:
        """Raise ServerDown unless the server still answers another question: then this one is at fault."""
        if _is_refusal(failure):
            return
        if failure.status in HOPELESS or self.endpoint.fault(self._greeting(picture=False)):
            raise ServerDown(self.endpoint, failure) from failure


def _is_refusal(failure: Unanswered) -> bool:
    """Return whether the server is there, and does not answer this question."""
    refused = failure.final and failure.status in range(400, 500) and failure.status not in HOPELESS
    return isinstance(failure, Nonsense) or refused


def _sign(failure: Unanswered) -> str:
    """Return an error without its numbers, which differ from question to question."""
    return re.sub(r"\d+", "#", failure.found)


def _reply(request: Request) -> ServerReply:
    if isinstance(request.outcome, ServerReply):
        return request.outcome
    raise request.outcome or Unanswered("not asked")


def _read_reply(answer: Any) -> ServerReply:
    """Read a chat completion. Raises Refused, NoAnswer, or an error that `Endpoint` turns into Nonsense.

    A whole answer without content is not asked again: at temperature 0 it would be the same.
    """
    choice = answer["choices"][0]
    reason = choice.get("finish_reason")
    message = choice["message"] if "message" in choice or not reason else {}
    refusal = message.get("refusal")
    if reason == "content_filter" or refusal:
        raise Refused(f"content filter of the server: {refusal or reason}")
    if message.get("content") is None and (reason or "role" in message):
        thought = message.get("reasoning_content") or message.get("reasoning")
        what = "reasoning without an answer" if thought else "no content"
        raise NoAnswer(f"the server sent {what} (finish_reason {reason})")
    return ServerReply(content_of(answer).strip(), reason != "length")


def _refusal(error: Unanswered) -> Refused | None:
    """Recognize a refusal that came as an error: of a question that is too large or too long, or for its content."""
    words = words_of(error.body)
    if error.status == 413 or (error.status in (400, 422, 500) and TOO_LONG.search(words)):
        return TooLong(error.found)
    if error.status in (400, 403, 422) and FILTERED.search(words):
        return Refused(f"content filter of the server: {error.found}")
    return None


def _card(endpoint: Endpoint, model: str | None) -> tuple[dict[str, Any], bool]:
    """Return what the server says of the model, and whether it takes parts as they are; its name alone without a list.

    vLLM and similar servers write the time of the request as `created`; it identifies nothing and is left out.
    `transformers serve` fails to list where no hub cache is: a model that is named needs no list.
    """
    try:
        cards, now = endpoint.models()
    except Unanswered as error:
        if model is None or error.status != 500:
            raise
        cards, now = [], datetime.now(UTC)
    by_name = {card["id"]: card for card in cards}
    if model is None and len(by_name) == 1:
        model = next(iter(by_name))
    if model is None:
        if not by_name:
            raise ConfigError(
                f"{endpoint.url} lists no model",
                expected="--model NAME, as the server calls it: for `transformers serve` the folder or the hub's name "
                "of the model, for a cloud the name in its price list",
            )
        raise ConfigError(
            f"which model? {endpoint.url} lists {len(by_name)}", expected=f"--model NAME, one of: {', '.join(by_name)}"
        )
    if by_name and model not in by_name:
        raise UnknownName("model", model, by_name, fix=f"{endpoint.url}/models lists them all")
    found = by_name.get(model, {})
    card = {key: found[key] for key in IDENTITY if key in found}
    created = card.get("created")
    if isinstance(created, int | float) and now.timestamp() - 60 < created < now.timestamp() + 60:
        del card["created"]
    own = found.get("vlm")
    return {"id": model, **card}, isinstance(own, dict) and own.get("exact") is True
