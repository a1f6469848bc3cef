"""Training and benchmark records: OpenAI-style messages in memory, the published `conversations` JSONL on disk."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError

Message = dict[str, Any]
"""`{"role": "system" | "user" | "assistant", "content": [part, ...]}`; a part is one of
`{"type": "text", "text": str}`, `{"type": "image", "path": str}`,
`{"type": "video", "path": str, "clip": [s, s] | None}`."""


@dataclass(frozen=True)
class Sample:
    """One record. `messages` hold text and media in reading order; `where` is `file:line` for error messages."""

    id: str
    messages: list[Message]
    where: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def media(self) -> list[dict[str, Any]]:
        """The image and video parts, in reading order."""
        return [p for m in self.messages for p in m["content"] if p["type"] != "text"]


def text(value: str) -> dict[str, Any]:
    """A text part."""
    return {"type": "text", "text": value}


def image(path: str | Path) -> dict[str, Any]:
    """An image part."""
    return {"type": "image", "path": str(path)}


def video(path: str | Path, clip: tuple[float, float] | None = None) -> dict[str, Any]:
    """A video part; `clip` is a range in seconds."""
    return {"type": "video", "path": str(path), "clip": clip}


ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def split_placeholders(value: str, media: Iterator[dict[str, Any]], mark: str) -> list[dict[str, Any]]:
    """Text with `mark` where media stand -> parts. A mark with no medium left stays literal text."""
    parts: list[dict[str, Any]] = []
    pieces = value.split(mark)
    for i, piece in enumerate(pieces):
        if i:
            medium = next(media, None)
            parts.append(medium if medium is not None else text(mark))
        if piece:
            parts.append(text(piece))
    return parts or [text("")]


def read_record(record: dict[str, Any], *, root: Path, where: str = "") -> Sample:
    """A published record (`conversations`, `image`, `video`, `clip`) as a Sample; media paths are joined to `root`.

    As published: a leading non-human turn is dropped; a single image without a placeholder is put in front of the
    first human turn, followed by a newline; an empty image list is a text-only sample. Unlike published: a number
    of placeholders that differs from the number of images is refused here, not repaired.

    Source: published dataset loaders of V2PE and InternVL (OpenGVLab/V2PE, OpenGVLab/InternVL).

    Raises:
        DataError: names `where`, both counts and the rule.
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
    parts = [image(root / p) for p in images] + [video(root / v, record.get("clip")) for v in videos]
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
    messages = [{"role": "system", "content": [text(system["value"])]}] if system else []
    for turn in turns:
        user = turn["from"] == "human"
        content = split_placeholders(turn["value"], media, mark) if user and parts else [text(turn["value"])]
        messages.append({"role": ROLES[turn["from"]], "content": content})
    known = {"id", "conversations", "image", "video", "clip"}
    return Sample(str(record.get("id", where)), messages, where, {k: v for k, v in record.items() if k not in known})


def iter_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of a JSONL file. Raises DataError naming file and line."""
    path = Path(path)
    try:
        f = path.open("rb")
    except FileNotFoundError as error:
        raise DataError(f"no such file: {path}") from error
    with f:
        for number, line in enumerate(f, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    raise DataError(f"{path}:{number}: not JSON: {error}", fix="repair or remove the line") from error
