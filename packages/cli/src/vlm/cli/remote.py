"""A conversation with an OpenAI-compatible server: what `vlm chat --url` talks to.

>>> chat = RemoteSession("http://127.0.0.1:8000/v1", key=None)                       # doctest: +SKIP
>>> "".join(chat.stream("What is in the picture?", images=[Path("cat.png")]))        # doctest: +SKIP
'A cat.'
"""

import base64
import json
import mimetypes
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from vlm.cli.strides import per_tile
from vlm.core.errors import ConfigError, DataError, FetchError, UnknownName
from vlm.core.net import open_client
from vlm.core.sample.encode import frames_as_images
from vlm.core.sample.media import load_video
from vlm.core.sample.records import Message, Part, VideoPart, image, text, video
from vlm.core.text import printable
from vlm.eval.backends.endpoint import Endpoint, Unanswered
from vlm.eval.backends.parts import content_parts

SECONDS = 600.0
"""Longest pause between two pieces of a reply; the first comes when the prompt has been read."""

FIXES = {
    401: "export VLM_API_KEY=…, or name the variable with --api-key-env",
    403: "ask who runs the server which keys and host names it takes",
    404: "check --url (it ends in /v1) and --model",
    413: "send fewer or smaller pictures",
}
"""HTTP status -> what to do."""


@dataclass
class RemoteSession:
    """A conversation that a server answers, with the methods of `vlm.models.ChatSession` that a terminal uses.

    Pictures are sent as they are, a video as frames. To a server of ours `own` goes along under the key `vlm`.

    Raises:
        FetchError: no answer. UnknownName, ConfigError: no such model, none named of several, or `own` for a server
            that is not ours.
    """

    url: str
    key: str | None = None
    model: str | None = None
    system: str | None = None
    frames: int = 8
    own: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        endpoint = Endpoint(self.url, key=self.key, attempts=2)
        self.url = endpoint.url
        try:
            cards = {card["id"]: card for card in endpoint.models()[0]}
        except Unanswered as error:
            fix = FIXES.get(error.status or 0, "start the server, or check --url (it ends in /v1)")
            raise FetchError(f"{self.url} does not answer: {error.found}", fix=fix) from error
        if self.model is None and len(cards) != 1:
            raise ConfigError(
                f"which model? {self.url} lists {len(cards)}",
                expected=f"--model NAME, one of: {', '.join(map(printable, cards))}" if cards else "--model NAME",
            )
        self.model = self.model or next(iter(cards))
        if cards and self.model not in cards:
            raise UnknownName("model", self.model, cards, fix=f"{self.url}/models lists them all")
        card = cards.get(self.model, {}).get("vlm")
        self.ours = isinstance(card, dict)
        if self.own and not self.ours:
            raise ConfigError(
                f"{' and '.join(self.own)} for a server that is not `vlm serve`", fix="leave these options out"
            )
        if card and self.own and "strides" in self.own:
            self.own = {**self.own, "strides": per_tile(self.own["strides"], card["tokens_per_tile"])}
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self.client = open_client(self.url, timeout=SECONDS, headers=headers)
        self.start: list[Message] = [{"role": "system", "content": [text(self.system)]}] if self.system else []
        self.history: list[Message] = list(self.start)

    def reset(self) -> None:
        """Forget the conversation."""
        self.history = list(self.start)

    def stream(
        self, question: str, *, images: Sequence[Path] = (), videos: Sequence[Path | VideoPart] = (), **settings: Any
    ) -> Iterator[str]:
        """Yield pieces of the answer as they come. `settings` are fields of the request.

        The turn is added to the history when the answer is complete.

        Raises:
            ConfigError: no question. MediaError: a file that cannot be read. FetchError: no answer, half an answer, or
                a server that fails. DataError: a server that refuses the question.
        """
        if not question.strip():
            raise ConfigError("the question is empty", expected="some text")
        content: list[Part] = [image(path) for path in images]
        for one in videos:
            content += [one if isinstance(one, dict) else video(one), text("\n")]
        messages = [*self.history, Message(role="user", content=[*content, text(question)])]
        body = {
            "model": self.model,
            "messages": [{"role": m["role"], "content": self._content(m)} for m in messages],
            "stream": True,
            **settings,
            **({"vlm": self.own} if self.own else {}),
        }
        return self._pieces(messages, body)

    def _content(self, message: Message) -> list[dict[str, Any]]:
        """Return the parts of a turn; our server takes a video whole and knows how its family writes the frames.

        Of a video of which a part is asked about, the frames of that part are sent.
        """
        if not self.ours:
            (expanded,) = frames_as_images([message], load_video, self.frames)
            return content_parts(expanded, "none")
        parts: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] == "video" and part["clip"] is None:
                parts.append(video_url(Path(part["path"])))
            else:
                (expanded,) = frames_as_images([{**message, "content": [part]}], load_video, self.frames)
                parts += content_parts(expanded, "none")
        return parts

    def _pieces(self, messages: list[Message], body: dict[str, Any]) -> Generator[str, None, None]:
        whole, ended = "", False
        try:
            with self.client.stream("POST", f"{self.url}/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise refusal(self.url, response)
                for event in events(response.iter_lines()):
                    if event.get("error"):
                        raise FetchError(f"{self.url} failed: {printable(str(event['error'].get('message')))}")
                    for choice in event.get("choices") or ():
                        piece = (choice.get("delta") or {}).get("content") or ""
                        ended = ended or bool(choice.get("finish_reason"))
                        whole += piece
                        yield piece
        except httpx.HTTPError as error:
            raise FetchError(
                f"{self.url} does not answer: {printable(str(error) or type(error).__name__)}",
                fix="ask again when it runs; this turn is not in the conversation",
            ) from error
        if not ended:
            raise FetchError(
                f"{self.url} broke off in the middle of the answer",
                fix="ask again; this turn is not in the conversation",
            )
        self.history = [*messages, {"role": "assistant", "content": [text(whole.strip())]}]


def video_url(path: Path) -> dict[str, Any]:
    """Return a video as a part of a message. Raises DataError for one that cannot be sent."""
    kind = mimetypes.guess_type(path.name)[0] or ""
    if not path.is_file() or not kind.startswith(("video/", "image/")):
        raise DataError(f"{printable(path)} cannot be sent as a video", expected="a video file (MP4, WebM, MKV, …)")
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": "video_url", "video_url": {"url": f"data:{kind};base64,{data}"}}


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Yield the events of a streamed completion. Raises FetchError for a line that is none."""
    for line in lines:
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if not data or data == "[DONE]":
            continue
        try:
            event = json.loads(data)
        except ValueError as error:
            raise FetchError(f"a streamed answer that is no JSON: {printable(data, 80)}") from error
        if isinstance(event, dict):
            yield event


def refusal(url: str, response: httpx.Response) -> DataError | FetchError:
    """Return the error that a server's answer other than 200 says, with its own words."""
    try:
        found = response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        found = response.text
    said = f"{url} answered {response.status_code}: {printable(str(found), 500)}"
    if response.status_code in (400, 422):
        return DataError(said)
    wait = response.headers.get("Retry-After", "")
    again = f"ask again in {wait} s" if wait.isdigit() else "ask again later"
    return FetchError(said, fix=FIXES.get(response.status_code, again))
