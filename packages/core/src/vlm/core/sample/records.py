"""Records: typed messages in memory, the published `conversations` JSONL on disk.

for line, record in iter_jsonl(Path("dataset/digits/train.jsonl")):
    sample = read_record(record, root=Path("dataset/digits"), where=f"train.jsonl:{line}")
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from PIL import Image

from vlm.core.errors import DataError
from vlm.core.media_root import MediaRoot
from vlm.core.reading import open_regular


class TextPart(TypedDict):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImagePart(TypedDict):
    """An image of a message.

    `path` is its file. `image` holds the RGB picture itself and makes `path` meaningless; `frame` marks a video frame,
    which is always one tile; `together` names several files that share one placeholder.
    """

    type: Literal["image"]
    path: str
    image: NotRequired[Image.Image]
    frame: NotRequired[bool]
    together: NotRequired[list[str]]


class VideoPart(TypedDict):
    """A video of a message: its file, a range in seconds or None for all of it, and how many frames to take."""

    type: Literal["video"]
    path: str
    clip: tuple[float, float] | None
    frames: NotRequired[int]


Medium = ImagePart | VideoPart
Part = TextPart | ImagePart | VideoPart


class Message(TypedDict):
    """One turn: who speaks, and text and media in reading order."""

    role: Literal["system", "user", "assistant"]
    content: Sequence[Part]


Turn = TypedDict("Turn", {"from": str, "value": str})
"""One turn of a published record: `from` is human, gpt or system."""


class ConversationRecord(TypedDict):
    """A record in the published `conversations` schema, as the builders of this project write it."""

    id: str
    image: str | list[str]
    conversations: list[Turn]
    meta: NotRequired[dict[str, Any]]
    metadata: NotRequired[dict[str, Any]]
    haystack: NotRequired[str | None]


@dataclass(frozen=True)
class Sample:
    """One record in memory.

    `messages` hold text and media in reading order; `where` is `file:line` for error messages; `meta` holds the other
    keys of the record.

    >>> Sample("1", [{"role": "user", "content": [image("cat.png"), text("What is it?")]}]).media
    [{'type': 'image', 'path': 'cat.png'}]
    """

    id: str
    messages: list[Message]
    where: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def media(self) -> list[Medium]:
        """The image and video parts, in reading order."""
        return [part for message in self.messages for part in message["content"] if part["type"] != "text"]


def text(value: str) -> TextPart:
    """Return a text part."""
    return {"type": "text", "text": value}


def image(path: str | Path) -> ImagePart:
    """Return an image part for a file."""
    return {"type": "image", "path": str(path)}


def video(path: str | Path, clip: tuple[float, float] | None = None) -> VideoPart:
    """Return a video part for a file; `clip` is a range in seconds."""
    return {"type": "video", "path": str(path), "clip": clip}


ROLES: dict[str, Literal["system", "user", "assistant"]] = {"human": "user", "gpt": "assistant", "system": "system"}


def split_placeholders(value: str, media: Iterator[Medium], mark: str) -> list[Part]:
    r"""Return a text as parts, with the next medium where each `mark` is.

    A mark without a medium left stays literal text. An empty text gives one empty text part.

    >>> split_placeholders("<image>\nHi", iter([image("a.png")]), "<image>")
    [{'type': 'image', 'path': 'a.png'}, {'type': 'text', 'text': '\nHi'}]
    """
    parts: list[Part] = []
    pieces = value.split(mark)
    for i, piece in enumerate(pieces):
        if i:
            medium = next(media, None)
            parts.append(medium if medium is not None else text(mark))
        if piece:
            parts.append(text(piece))
    return parts or [text("")]


def read_record(record: dict[str, Any], *, root: Path | MediaRoot, where: str = "") -> Sample:
    r"""Return a published record (`conversations`, `image`, `video`, `clip`) as a Sample.

    As published: a leading turn that is not the user's is dropped; a single image without a placeholder is put in front
    of the first user turn, followed by a newline; an empty list of images is a text-only sample. Unlike the published
    code, which repairs it, a number of placeholders that differs from the number of images is an error.

    Source: published dataset loaders of V2PE and InternVL (OpenGVLab/V2PE, OpenGVLab/InternVL).

    Args:
        record: The parsed JSON; it may hold anything, and is checked.
        root: Folder that media paths are relative to, and must not leave.
        where: `file:line` for error messages; by default the record's id.

    Raises:
        DataError: The record is malformed; the message names `where`, both counts and the rule.

    >>> turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cat."}]
    >>> sample = read_record({"id": 1, "image": "cat.png", "conversations": turns}, root=Path("set"))
    >>> sample.messages[0]["content"]
    [{'type': 'image', 'path': 'set/cat.png'}, {'type': 'text', 'text': '\nWhat is it?'}]
    """
    where = where or (str(record.get("id", "record")) if isinstance(record, dict) else "record")
    turns = record.get("conversations") if isinstance(record, dict) else None
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: no `conversations`", expected="a list of {from: human|gpt, value: text}")
    for turn in turns:
        if not isinstance(turn, dict) or str(turn.get("from")) not in ROLES or not isinstance(turn.get("value"), str):
            raise DataError(f"{where}: bad turn {turn!r:.80}", expected="{from: human|gpt|system, value: text}")
    images = record.get("image") or []
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(name, str) for name in images):
        raise DataError(f"{where}: bad `image` {images!r:.80}", expected="a path or a list of paths")
    videos = [str(record["video"])] if record.get("video") else []
    if images and videos:
        raise DataError(f"{where}: has both `image` and `video`", expected="one of them")
    mark = "<video>" if videos else "<image>"
    gate = root if isinstance(root, MediaRoot) else MediaRoot(root)
    files = [gate.locate(name, where) for name in [*images, *videos]]
    parts: list[Medium] = [video(f, record.get("clip")) if videos else image(f) for f in files]
    turns = [dict(t) for t in turns]
    system = turns.pop(0) if turns[0]["from"] == "system" else None
    if turns and turns[0]["from"] != "human":
        turns = turns[1:]
    marks = sum(t["value"].count(mark) for t in turns if t["from"] == "human")
    if len(parts) == 1 and marks == 0 and turns:
        turns[0]["value"] = f"{mark}\n" + turns[0]["value"]
        marks = 1
    if parts and marks != len(parts):
        raise DataError(
            f"{where}: {marks} {mark} placeholders but {len(parts)} files",
            expected="one placeholder for each file, in human turns",
        )
    for i, turn in enumerate(turns):
        if turn["from"] != ("human", "gpt")[i % 2]:
            raise DataError(f"{where}: turn {i} is from {turn['from']!r}", expected="human and gpt in turn")
    media = iter(parts)
    messages: list[Message] = [{"role": "system", "content": [text(system["value"])]}] if system else []
    for turn in turns:
        user = turn["from"] == "human"
        content: list[Part] = [text(turn["value"])]
        if user and parts:
            content = split_placeholders(turn["value"], media, mark)
        messages.append({"role": ROLES[turn["from"]], "content": content})
    known = {"id", "conversations", "image", "video", "clip"}
    return Sample(str(record.get("id", where)), messages, where, {k: v for k, v in record.items() if k not in known})


def iter_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number, from 1, and the parsed object of each line of a JSONL file; blank lines are left out.

    Raises:
        DataError: The file is missing, or a line is not JSON; the message names file and line.
    """
    path = Path(path)
    try:
        f = open_regular(path)
    except FileNotFoundError as error:
        raise DataError(f"no such file: {path}") from error
    with f:
        for number, line in enumerate(f, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    raise DataError(f"{path}:{number}: not JSON: {error}", fix="repair or remove the line") from error
