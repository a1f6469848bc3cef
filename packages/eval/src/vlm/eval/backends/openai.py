"""A model behind an OpenAI-compatible server (vLLM, SGLang, LMDeploy, a cloud) as a backend of the runner.

endpoint = Endpoint("http://localhost:8000/v1", timeout=300)
run(benchmark, OpenAIBackend(endpoint, "my-model", concurrency=8), out, Options(batch_size=8), data=folder)

The server applies its own chat template, system text and image rule. Its weights cannot be hashed from outside: see
`OpenAIBackend.fingerprint`.
"""

import base64
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from PIL import Image

from vlm.core.errors import ConfigError, FetchError, UnknownName, VlmError
from vlm.core.sample.encode import frames_as_images
from vlm.core.sample.media import load_image, load_video
from vlm.core.sample.records import Message
from vlm.eval.backends.endpoint import Endpoint, Nonsense, Unanswered, content_of
from vlm.eval.backends.native import Refused, Reply, Stopped, TooLong
from vlm.eval.loaders.common import approximate_tokens
from vlm.eval.run.outcomes import content_key

FRAMES = 8
"""Frames taken from a video when the benchmark names no number."""

HOPELESS = (401, 403, 404, 429)
"""HTTP codes (after all attempts) that every other question would get, too."""

IDENTITY = ("id", "created", "root", "parent", "owned_by", "max_model_len")
"""What `/models` says that tells one model from another."""

TOO_LONG = ("context_length_exceeded", "maximum context length", "context length", "too many tokens", "max_model_len")
FILTERED = ("content_filter", "content_policy_violation", "content management policy")
"""Words of servers that refuse a question (HTTP 400) for its length, or for what it shows."""

ORIENTATION = 0x0112  # EXIF


class ServerDown(Stopped):
    """The server does not answer; when it is back, the same command goes on."""

    def __init__(self, endpoint: Endpoint, failure: Unanswered):
        go_on = "when it answers, run the same command: the answers so far are kept"
        super().__init__(FetchError(f"{endpoint.url} does not answer: {failure.found}", fix=go_on))


@dataclass(frozen=True)
class Said:
    """A reply; see `vlm.eval.backends.native.Reply`."""

    text: str
    finished: bool


@dataclass
class Request:
    """An encoded question. It keeps what came of it: a batch that is asked again in halves sends nothing twice."""

    messages: list[dict[str, Any]]
    outcome: Said | VlmError | None = None


class OpenAIBackend:
    """A model that a server answers for.

    `model` None: the one that the server lists. `family`: whose prompts of the tables to ask (default: the table's
    own). `fingerprint` is made of the address, the name, and what `/models` says of the model.

    Raises:
        ServerDown: no answer. ConfigError, UnknownName: the server lists several models, or others.
    """

    batch_tokens = math.inf  # nothing is padded here

    def __init__(self, endpoint: Endpoint, model: str | None = None, *, family: str = "", concurrency: int = 8):
        self.endpoint, self.family, self.concurrency = endpoint, family, concurrency
        try:
            card = _card(endpoint, model)
        except Unanswered as error:
            raise ServerDown(endpoint, error) from error
        self.model = card["id"]
        self.fingerprint = content_key(base_url=endpoint.url, **card)
        self.settings = {"backend": "openai", "base_url": endpoint.url, "model": self.model, "temperature": 0}

    def count_tokens(self, text: str) -> int:
        return approximate_tokens(text)

    def prompt(self, messages: list[Message]) -> str:
        return "\n".join(
            f"{m['role']}: " + "".join(p.get("text", f"<{p['type']}>") for p in m["content"]) for m in messages
        )

    def cost(self, messages: list[Message]) -> float:
        # text alone: a server computes a shared image once by itself, and must not wait for its questions one by one
        return 1 + len(self.prompt(messages)) / 4

    def encode(self, item_id: str, messages: list[Message]) -> Request:
        return Request([{"role": m["role"], "content": _content(m)} for m in messages])

    def answer(self, encoded: Sequence[Request], *, max_new_tokens: int, min_new_tokens: int) -> Sequence[Reply]:
        """`min_new_tokens` is not sent: the protocol has no word for it.

        Raises:
            ServerDown: the server died, or answers nothing any more. Refused, TooLong, Unanswered: of the first item
                that has no answer.
        """
        todo = [request for request in encoded if request.outcome is None]
        self._at_once(todo, max_new_tokens)
        for failure in [r.outcome for r in todo if isinstance(r.outcome, Unanswered)]:
            self._check_alive(failure)
        return [_reply(request) for request in encoded]

    def recover(self) -> None:
        """Nothing: the memory is the server's."""

    def _at_once(self, todo: Sequence[Request], max_new_tokens: int) -> None:
        """Ask them, `concurrency` at a time. Daemon threads: Ctrl-C must not wait for a slow server."""
        waiting: SimpleQueue[Request | None] = SimpleQueue()
        threads = [threading.Thread(target=self._work, args=(waiting, max_new_tokens), daemon=True) for _ in todo]
        threads = threads[: self.concurrency]
        for request in [*todo, *[None] * len(threads)]:
            waiting.put(request)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, waiting: "SimpleQueue[Request | None]", max_new_tokens: int) -> None:
        while request := waiting.get():
            request.outcome = self._ask(request, max_new_tokens)

    def _ask(self, request: Request, max_new_tokens: int) -> Said | VlmError:
        limits = {"max_tokens": max_new_tokens, "temperature": self.settings["temperature"]}
        body = {"model": self.model, "messages": request.messages, **limits}
        try:
            return self.endpoint.chat(body, _read)
        except Refused as error:
            return error
        except Unanswered as error:
            return _refusal(error) or error

    def _check_alive(self, failure: Unanswered) -> None:
        """Raises ServerDown unless the server still answers another question: then this one is to blame."""
        bad_request = failure.final and failure.status in range(400, 500) and failure.status not in HOPELESS
        if isinstance(failure, Nonsense) or bad_request:
            return
        greeting = {"model": self.model, "messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 1}
        if failure.status in HOPELESS or not self.endpoint.answers(greeting):
            raise ServerDown(self.endpoint, failure) from failure


def _reply(request: Request) -> Said:
    if isinstance(request.outcome, Said):
        return request.outcome
    raise request.outcome or Unanswered("not asked")


def _read(answer: Any) -> Said:
    """The text of a chat completion. Raises Refused, or what makes `Endpoint` call it nonsense."""
    choice = answer["choices"][0]
    reason, refusal = choice.get("finish_reason"), choice["message"].get("refusal")
    if reason == "content_filter" or refusal:
        raise Refused(f"content filter of the server: {refusal or reason}")
    return Said(content_of(answer).strip(), reason != "length")


def _refusal(error: Unanswered) -> Refused | None:
    """A refusal that came as HTTP 400 (or 413: the question is too large to be sent)."""
    said = error.body.lower()
    if error.status == 413 or (error.status == 400 and any(words in said for words in TOO_LONG)):
        return TooLong(error.found)
    if error.status == 400 and any(words in said for words in FILTERED):
        return Refused(f"content filter of the server: {error.found}")
    return None


def _card(endpoint: Endpoint, model: str | None) -> dict[str, Any]:
    """What the server says of the model; its name alone when there is no list.

    vLLM and its like write the moment of asking as `created`: that tells nothing, and is left out.
    """
    cards, now = endpoint.models()
    by_name = {card["id"]: card for card in cards}
    if model is None and len(by_name) == 1:
        model = next(iter(by_name))
    if model is None:
        listed = f"--model NAME, one of: {', '.join(by_name)}" if by_name else "--model NAME"
        raise ConfigError(f"which model? {endpoint.url} lists {len(by_name)}", expected=listed)
    if by_name and model not in by_name:
        raise UnknownName("model", model, by_name, fix=f"{endpoint.url}/models lists them all")
    card = {key: by_name[model][key] for key in IDENTITY if key in by_name.get(model, {})}
    created = card.get("created")
    if isinstance(created, int | float) and abs(created - now.timestamp()) < 60:
        del card["created"]
    return {"id": model, **card}


# content parts -------------------------------------------------------------------------------------------------------


def _content(message: Message) -> list[dict[str, Any]]:
    """Text and image parts of the protocol, in the order of ours; a video is `Frame1: ` and so on, as published."""
    (expanded,) = frames_as_images([message], load_video, FRAMES)
    return [
        _image(_png(part["image"]) if "image" in part else image_bytes(part["path"]))
        if part["type"] == "image"
        else part
        for part in expanded["content"]
        if part.get("text") != ""
    ]


def _image(kind_and_data: tuple[str, bytes]) -> dict[str, Any]:
    kind, data = kind_and_data
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(data).decode()}"}}


def image_bytes(path: str | Path) -> tuple[str, bytes]:
    """(`jpeg` or `png`, the bytes to send): the file as it is where every decoder sees what ours sees, else a PNG of
    the picture that our models see.

    As it is: JPEG and PNG in 8-bit RGB or gray, without transparency, animation or a rotation in EXIF.

    Raises:
        MediaError: missing or undecodable.
    """
    picture = load_image(path)  # the whole file is decoded: a damaged one is this item's fault, not the server's
    with Image.open(path) as image:
        plain = image.format in ("JPEG", "PNG") and image.mode in ("RGB", "L") and "transparency" not in image.info
        if plain and getattr(image, "n_frames", 1) == 1 and image.getexif().get(ORIENTATION, 1) == 1:
            return str(image.format).lower(), Path(path).read_bytes()
    return _png(picture)


def _png(picture: Image.Image) -> tuple[str, bytes]:
    out = BytesIO()
    picture.save(out, format="PNG", compress_level=1)
    return "png", out.getvalue()
