"""Records: typed messages in memory, the published `conversations` form on disk, and which records can be used.

for line, record in iter_jsonl(Path("dataset/digits/train.jsonl")):
    sample = read_record(record, root=Path("dataset/digits"), where=f"train.jsonl:{line}")
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

from PIL import Image

from vlm.core.errors import DataError, only_vlm_errors
from vlm.core.media_root import MediaRoot
from vlm.core.sample.fields import named, no_clip, no_path, whole
from vlm.core.sample.lines import iter_jsonl as iter_jsonl
from vlm.core.text import printable


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
    """One turn: who speaks, and text and media in reading order; with `learn` False an answer is context only."""

    role: Literal["system", "user", "assistant"]
    content: Sequence[Part]
    learn: NotRequired[bool]


@dataclass(frozen=True)
class Sample:
    """One record in memory.

    `messages` hold text and media in reading order; `where` is `file:line` for error messages; `meta` holds the other
    keys of the record, and `unread` names those that nothing reads.

    >>> Sample("1", [{"role": "user", "content": [image("cat.png"), text("What is it?")]}]).media
    [{'type': 'image', 'path': 'cat.png'}]
    """

    id: str
    messages: list[Message]
    where: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

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


ROLES: dict[str, Literal["system", "user", "assistant"]] = {"human": "user", "gpt": "assistant", "system": "system"}
MARKS = ("<image>", "<video>")
KNOWN = {"id", "conversations", "image", "video", "clip", "system", "system_prompt", "meta", "metadata", "haystack"}
TURN_KEYS = {"from", "value", "loss"}

MEANT = {
    "images": "the key is `image`: a path or a list of paths",
    "videos": "the key is `video`: a path or a list of paths",
    "loss": "`loss: 0` stands on a turn: an answer that is not learned",
    "weight": "samples have no weight; `repeat` of a recipe's entry weighs a file",
    "turn.loss": "only answers are learned; a question has no loss",
    "turn.weight": "write `loss: 0` on an answer that is not to be learned",
}
"""Unread keys that people write -> what to do instead."""

Allowed = Literal["quoted-placeholders", "empty-answers"]
"""What a set may hold on purpose.

- `quoted-placeholders`: records without files whose texts quote `<image>` or `<video>`; they stay text
- `empty-answers`: answers without text; as published, such a turn is its header alone
"""


class RecordFault(NamedTuple):
    """What is wrong with a record: a kind (`vlm.core.check.check` lists them), a message, whether it is unusable."""

    kind: str
    message: str
    fatal: bool = True


@dataclass
class Examined:
    """What a record is.

    `sample` is None where a fault is fatal. `unread` names the keys that nothing reads, those of turns as `turn.KEY`.
    `placeholders` are those in questions, `files` the names of images and videos.
    """

    sample: Sample | None = None
    faults: list[RecordFault] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    placeholders: int = 0
    files: list[str] = field(default_factory=list)

    def fault(self, kind: str, message: str, *, fatal: bool = True) -> None:
        """Add a fault."""
        self.faults.append(RecordFault(kind, message, fatal))

    @property
    def fatal(self) -> list[RecordFault]:
        """The faults that make the record unusable."""
        return [fault for fault in self.faults if fault.fatal]


def examine(record: Any, *, root: Path | MediaRoot, where: str = "", allow: Collection[Allowed] = ()) -> Examined:
    """Decide what a record in the published form is: the one place that says which records can be used.

    `read_record` raises what is fatal here, the check lists everything, training and the builders take the sample.

    Args:
        record: The parsed JSON; it may hold anything.
        root: Folder that media paths are relative to, and must not leave.
        where: `file:line`, the sample's id where the record has none.
        allow: What the set may hold on purpose.
    """
    found = Examined()
    if not isinstance(record, dict):
        found.fault("json", f"{named(record)}, not an object")
        return found
    found.unread = [printable(key, 60) for key in record if key not in KNOWN]
    for key in ("images", "videos"):
        if record.get(key):
            found.fault("keys", f"`{key}` is not read; {MEANT[key]}")
    turns = _turns(record, found, allow)
    images, videos = (_paths(record, key, found) for key in ("image", "video"))
    found.files = images + videos
    clip = _clip(record, videos, found)
    if images and videos:
        found.fault("keys", "has both `image` and `video`")
    mark = "<video>" if videos else "<image>"
    if turns:
        _placeholders(record, turns, mark, found, allow)
    gate = MediaRoot.of(root)
    if not any(fault.kind == "path" for fault in found.faults):
        for why in filter(None, map(gate.refusal, found.files)):
            found.fault("outside", why)
    if not found.fatal:
        files = [gate.folder / name for name in found.files]
        parts: list[Medium] = [video(file, clip) if videos else image(file) for file in files]
        known = KNOWN - {"meta", "metadata", "haystack"}
        meta = {key: value for key, value in record.items() if key not in known}
        id = record_id(record) or where
        found.sample = Sample(id, _messages(turns, parts, mark), where, meta, tuple(found.unread))
    return found


def read_record(record: Any, *, root: Path | MediaRoot, where: str = "", allow: Collection[Allowed] = ()) -> Sample:
    r"""Return a published record (`conversations`, `image`, `video`, `clip`) as a Sample.

    As published: a leading turn that is not the user's is dropped; a single file without a placeholder is put in front
    of the first user turn, followed by a newline; an empty list of images is a text-only sample. Unlike the published
    code, which repairs it, a number of placeholders that differs from the number of files is an error, and so is a
    record that loses a picture or trains on a header without an answer. Ours: `system` or `system_prompt` beside the
    turns is the system text, and `loss: 0` on an answer makes it context only.

    Source: published dataset loaders of V2PE and InternVL (OpenGVLab/V2PE, OpenGVLab/InternVL).

    Args:
        record: The parsed JSON; it may hold anything, and is checked.
        root: Folder that media paths are relative to, and must not leave.
        where: `file:line` for error messages; by default the record's id.
        allow: What the set may hold on purpose.

    Raises:
        DataError: The record cannot be used; the message names `where` and every reason.

    >>> turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cat."}]
    >>> sample = read_record({"id": 1, "image": "cat.png", "conversations": turns}, root=Path("set"))
    >>> sample.messages[0]["content"]
    [{'type': 'image', 'path': 'set/cat.png'}, {'type': 'text', 'text': '\nWhat is it?'}]
    """
    where = where or (record_id(record) if isinstance(record, dict) else "") or "record"
    with only_vlm_errors(where):
        found = examine(record, root=root, where=where, allow=allow)
    if found.sample is None:
        raise DataError(
            f"{where}: " + "; ".join(fault.message for fault in found.fatal),
            expected="{conversations: [{from: human|gpt|system, value: text}, ...], image or video: path or paths}",
            fix="correct the record, or leave it out",
        )
    return found.sample


def record_id(record: dict[str, Any]) -> str:
    """Return the id of a record as text; "" where it has none."""
    return "" if record.get("id") is None else printable(record["id"])


def _turns(record: dict[str, Any], found: Examined, allow: Collection[Allowed]) -> list[dict[str, Any]]:
    """Return the turns that are used: system text, if any, then question, answer, ... in turn. Empty after a fault."""
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        what = "no `conversations`" if turns is None else f"`conversations` is {named(turns) if turns else 'empty'}"
        other = "; `messages` is another form, which `vlm data import` reads"
        found.fault("turns", what + (other if "messages" in record else ""))
        return []
    for i, turn in enumerate(turns):
        _turn(i, turn, found, allow)
    if any(fault.kind == "turns" for fault in found.faults):
        return []
    kept = list(enumerate(turns))
    system = _system(record, kept.pop(0)[1] if turns[0]["from"] == "system" else None, found)
    if kept and kept[0][1]["from"] != "human":
        i, first = kept.pop(0)
        found.fault("first turn", f"turn {i} is from {first['from']!r}", fatal=False)
        if any(mark in first["value"] for mark in MARKS):
            found.fault("placeholders", f"turn {i}, which is left out, holds a placeholder")
    if not kept:
        found.fault("turns", "no question")
    for n, (i, turn) in enumerate(kept):
        if turn["from"] != ("human", "gpt")[n % 2]:
            found.fault("turns", f"turn {i} is from {turn['from']!r}, expected human and gpt in turn")
            break
    if len(kept) > 1 and kept[-1][1]["from"] == "human":
        found.fault("unanswered", f"turn {kept[-1][0]} is the last and a question", fatal=False)
    return [*system, *(turn for _, turn in kept)]


def _system(record: dict[str, Any], turn: dict[str, Any] | None, found: Examined) -> list[dict[str, Any]]:
    """Return the system turn: the first of the turns, or what stands beside them under `system`."""
    texts = [] if turn is None else [turn["value"]]
    for key in ("system", "system_prompt"):
        value = record.get(key)
        if value is None or value == "":
            continue
        if not isinstance(value, str) or not whole(value):
            found.fault("turns", f"`{key}` is {named(value)}, expected a text in UTF-8")
        elif value not in texts:
            texts.append(value)
    if len(texts) > 1:
        found.fault("turns", "two different system texts, expected one: a system turn, or `system` beside the turns")
    return [{"from": "system", "value": text} for text in texts[:1]]


def _turn(i: int, turn: Any, found: Examined, allow: Collection[Allowed]) -> None:
    """Examine one turn."""
    if not isinstance(turn, dict):
        return found.fault("turns", f"turn {i} is {named(turn)}, not an object")
    role, value, loss = turn.get("from"), turn.get("value"), turn.get("loss")
    if not isinstance(role, str) or role not in ROLES:
        said = printable(repr(role), 40) if isinstance(role, str) else named(role)
        found.fault("turns", f"turn {i}: from {said}, expected human, gpt or system")
    if not isinstance(value, str):
        return found.fault("turns", f"turn {i}: `value` is {named(value)}, not a text")
    if not whole(value):
        found.fault("turns", f"turn {i} holds half of a surrogate pair (a cut emoji)")
    if not value or value.isspace():
        empty = role == "gpt" and "empty-answers" not in allow
        found.fault("empty answer" if empty else "empty turn", f"turn {i} ({role}) has no text", fatal=empty)
    if loss is not None and loss not in (0, 1):
        found.fault("turns", f"turn {i}: `loss` is {printable(repr(loss), 40)}, expected 0 or 1")
    unread = [f"turn.{printable(k, 60)}" for k in turn if k not in TURN_KEYS]
    unread += ["turn.loss"] if loss and role != "gpt" else []
    found.unread += [key for key in unread if key not in found.unread]
    return None


def _paths(record: dict[str, Any], key: str, found: Examined) -> list[str]:
    """Return the paths under `image` or `video`; one that can be no file is a fault."""
    value = record.get(key)
    names = value if isinstance(value, list) else [] if value is None else [value]
    paths = [name if isinstance(name, str) else "" for name in names]
    for i, name in enumerate(names):
        if why := no_path(name):
            found.fault("path", f"`{key}`{f' {i + 1} of {len(names)}' if isinstance(value, list) else ''} {why}")
    return paths


def _clip(record: dict[str, Any], videos: Sequence[str], found: Examined) -> tuple[float, float] | None:
    """Return the range of seconds of the video."""
    clip = record.get("clip")
    if clip is None:
        return None
    if why := no_clip(clip) or (f"is beside {len(videos)} videos, expected one" if len(videos) != 1 else None):
        found.fault("clip", f"`clip` {why}")
        return None
    return (clip[0], clip[1])


def _placeholders(
    record: dict[str, Any], turns: Sequence[dict[str, Any]], mark: str, found: Examined, allow: Collection[Allowed]
) -> None:
    """Compare placeholders with files, and find those that are text."""
    asked = [turn["value"] for turn in turns if turn["from"] == "human"]
    others = [turn["value"] for turn in turns if turn["from"] != "human"]
    files, marks = len(found.files), sum(text.count(mark) for text in asked)
    found.placeholders, quotes = marks, "quoted-placeholders" in allow
    if not files:
        for quoted in (m for m in MARKS if any(m in text for text in [*asked, *others])):
            if quotes:
                found.fault("placeholder in text", f"{quoted} stays text", fatal=False)
                continue
            said = sum(text.count(quoted) for text in [*asked, *others])
            given = "".join(f"; `{key}` is {named(record[key])}" for key in ("image", "video") if key in record)
            found.fault("placeholders", f"{said} {quoted} placeholders but 0 files{given}")
        return
    if not quotes and any(m in text for m in MARKS if m != mark for text in asked):
        found.fault("placeholders", f"a question holds another placeholder than {mark}, to which the files belong")
    elsewhere = any(mark in text for text in others)
    if marks != files and not (marks == 0 and files == 1 and not elsewhere):
        why = "; the one in an answer or system text holds no file" if elsewhere else ""
        found.fault("placeholders", f"{marks} {mark} placeholders but {files} files{why}")
    elif elsewhere:
        found.fault("placeholder in text", f"{mark} in an answer or system text stays text", fatal=False)


def _messages(turns: Sequence[dict[str, Any]], parts: Sequence[Medium], mark: str) -> list[Message]:
    """Return the turns of a usable record as messages; a single file without a placeholder goes in front."""
    media, front = iter(parts), len(parts) == 1 and not any(mark in t["value"] for t in turns if t["from"] == "human")
    messages: list[Message] = []
    for turn in turns:
        value, user = turn["value"], turn["from"] == "human"
        if user and front:
            value, front = f"{mark}\n{value}", False
        content = split_placeholders(value, media, mark) if user and parts else [text(value)]
        message: Message = {"role": ROLES[turn["from"]], "content": content}
        if turn["from"] == "gpt" and turn.get("loss") == 0:
            message["learn"] = False
        messages.append(message)
    return messages
