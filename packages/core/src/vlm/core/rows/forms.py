"""The form of a record that another program wrote, and the same record in the normal form (`conversations`).

form, record, unread = normal({"image": "a.png", "question": "What is it?", "answer": "A cat."})
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vlm.core.sample.fields import named
from vlm.core.text import printable

IMAGE = (
    *("image", "images", "image_path", "image_paths", "image_file", "image_name", "image_url", "image_urls", "img"),
    *("img_path", "picture", "pictures", "photo", "file_name", "filename", "file"),
)
VIDEO = ("video", "videos", "video_path")
QUESTION = ("question", "query", "prompt", "instruction", "problem", "input", "user", "text_input")
ANSWER = (
    *("answer", "answers", "response", "reply", "output", "completion", "solution", "target", "assistant"),
    *("label", "caption", "text"),
)
OPTIONS = ("options", "choices")
SYSTEM = ("system", "system_prompt")
"""Names of columns, the likeliest first; upper case, blanks and dashes do not matter."""

ROLE_NAMES = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "model": "gpt",
    "chatgpt": "gpt",
    "bing": "gpt",
    "bard": "gpt",
    "system": "system",
    "developer": "system",
}
"""Who speaks, in the words of other programs -> in ours."""

IMAGE_TYPES = ("image", "image_url", "input_image")
VIDEO_TYPES = ("video", "video_url", "input_video")
TEXT_TYPES = ("text", "input_text", "output_text")
EXPECTED = "`conversations`, `messages`, or columns such as image, question, answer"


class Unfit(Exception):
    """A record that cannot be put into the normal form: a `kind` and a message that names the field."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class Normal(NamedTuple):
    """A record in the normal form, whose `image` and `video` are lists of what the row held, its form, unread keys."""

    form: str
    record: dict[str, Any]
    unread: list[str]


def normal(row: Mapping[str, Any], question: str | None = None) -> Normal:
    """Return a row in the normal form. Nothing is read from the disk.

    Args:
        row: Column or key -> value.
        question: What is asked in a row with columns but without a question.

    Raises:
        Unfit: The row has no known form, or a field that cannot be.

    >>> normal({"Image Path": "a.png", "Question": "What?", "Answer": "A cat."}).record["conversations"][1]
    {'from': 'gpt', 'value': 'A cat.'}
    """
    keys: dict[str, str] = {}
    for key in row:
        keys.setdefault(re.sub(r"[\s-]+", "_", key.strip()).lower(), key)
    values = {name: _opened(name, row[key]) for name, key in keys.items() if not _absent(row[key])}
    used: set[str] = set()

    def take(names: Iterable[str]) -> Any:
        for name in names:
            if name in values:
                used.add(name)
                return values[name]
        return None

    record: dict[str, Any] = {}
    if (id := take(("id",))) is not None:
        record["id"] = id if isinstance(id, (str, int)) else str(id)
    media = {"image": _files(take(IMAGE), "image"), "video": _files(take(VIDEO), "video")}
    form, turns, marks = _turns(values, used, take, question)
    found = {"image": media["image"] + marks["image"], "video": media["video"] + marks["video"]}
    for key, files in found.items():
        if marks[key] and media[key]:
            raise Unfit("form", f"`{key}` and parts with files of their own: which comes first is not known")
        if files:
            record[key] = files
    system = take(SYSTEM)
    if system is not None:
        record["system"] = system
    if "clip" in values:
        record["clip"] = take(("clip",))
    record["conversations"] = turns
    return Normal(form, record, [keys[name] for name in values if name not in used])


def _turns(
    values: Mapping[str, Any], used: set[str], take: Any, asked: str | None
) -> tuple[str, list[Any], dict[str, list[Any]]]:
    """Return the form of a row, its turns, and the files that are parts of them."""
    no_files: dict[str, list[Any]] = {"image": [], "video": []}
    for key in ("conversations", "conversation", "messages"):
        if key not in values:
            continue
        used.add(key)
        turns = values[key]
        if not isinstance(turns, list):
            raise Unfit("turns", f"`{key}` is {named(turns)}, expected a list of turns")
        first = next((turn for turn in turns if isinstance(turn, dict)), {})
        roles = {turn.get("from") for turn in turns if isinstance(turn, dict)}
        form = "messages" if "role" in first else "LLaVA" if roles <= {"human", "gpt", "system"} else "ShareGPT"
        return (form, *_spoken(turns, key))
    if isinstance(values.get("prompt"), list):
        used |= {"prompt", "completion"}
        said = values.get("completion")
        return (
            "prompt and completion",
            *_spoken([*values["prompt"], *(said if isinstance(said, list) else [])], "prompt"),
        )
    if isinstance(values.get("texts"), list):
        used.add("texts")
        pairs = [pair for pair in values["texts"] if isinstance(pair, dict)]
        if len(pairs) != len(values["texts"]):
            raise Unfit("turns", "`texts` holds what is no object, expected {user, assistant}")
        turns = [t for p in pairs for t in (("human", p.get("user")), ("gpt", p.get("assistant")))]
        return "texts", [{"from": who, "value": value} for who, value in turns], no_files
    return "columns", _columns(take, values, asked), no_files


def _columns(take: Any, values: Mapping[str, Any], asked: str | None) -> list[Any]:
    """Return the question and the answer of a row with a column for each."""
    question = take(QUESTION)
    if question is not None and values.get("instruction") == question and isinstance(values.get("input"), str):
        question = f"{question}\n{take(('input',))}"
    question = asked if question is None else question
    found = ", ".join(printable(key, 40) for key in list(values)[:12]) or "nothing"
    if question is None:
        ask = "; --question TEXT asks the same of each" if take(ANSWER) is not None else ""
        raise Unfit("form", f"no question: the columns are {found}; expected {EXPECTED}{ask}")
    answer = take(ANSWER)
    if answer is None:
        raise Unfit(
            "empty answer", f"no answer: the columns with a value are {found}; expected {', '.join(ANSWER[:4])}, …"
        )
    options = _options(take, values)
    if isinstance(answer, int) and not isinstance(answer, bool) and options:
        if not 0 <= answer < len(options):
            raise Unfit("turns", f"answer {answer} beside {len(options)} options, expected an index from 0")
        answer = options[answer][0]
    elif isinstance(answer, list) and answer and all(isinstance(one, str) for one in answer):
        answer = Counter(answer).most_common(1)[0][0]
    lines = [_text(question, "question"), *(f"{letter}. {option}" for letter, option in options)]
    history = [("human" if i == 0 else "gpt", one) for pair in take(("history",)) or [] for i, one in enumerate(pair)]
    turns = [*history, ("human", "\n".join(lines)), ("gpt", _text(answer, "answer"))]
    return [{"from": who, "value": value} for who, value in turns]


def _options(take: Any, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the letters and texts of the choices of a question."""
    given = take(OPTIONS)
    if given is None and all(isinstance(values.get(letter), (str, int, float)) for letter in "ab"):
        given = [take((letter,)) for letter in "abcdefgh" if letter in values]
    if isinstance(given, dict):
        return [(str(letter), _text(option, "options")) for letter, option in given.items()]
    if given is not None and not isinstance(given, list):
        raise Unfit("turns", f"`options` is {named(given)}, expected a list of texts")
    return [(chr(65 + i), _text(option, "options")) for i, option in enumerate(given or ())]


def _text(value: Any, name: str) -> str:
    """Return a cell as text: numbers as they are written."""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise Unfit("turns", f"`{name}` is {named(value)}, expected a text")


def _spoken(turns: Sequence[Any], key: str) -> tuple[list[Any], dict[str, list[Any]]]:
    """Return turns in the normal form, and the files of their parts."""
    files: dict[str, list[Any]] = {"image": [], "video": []}
    spoken: list[Any] = []
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise Unfit("turns", f"`{key}` {i} is {named(turn)}, not an object")
        turn = {name: value for name, value in turn.items() if not _absent(value)}
        who = turn.pop("from", None) or turn.pop("role", None)
        role = ROLE_NAMES.get(who.lower()) if isinstance(who, str) else None
        if role is None or turn.get("tool_calls") or turn.get("function_call"):
            what = "calls a tool" if role else f"is from {printable(repr(who), 40)}" if who else "names nobody"
            kind = "tool role" if role or who in ("tool", "function", "observation", "function_call") else "turns"
            known = "user, assistant, system (or human, gpt)"
            raise Unfit(
                kind, f"`{key}` {i} {what}, expected {known}{'; tools are not trained' if kind != 'turns' else ''}"
            )
        content = turn.pop("content", None)
        value = turn.pop("value", _parts(content, f"`{key}` {i}", files) if isinstance(content, list) else content)
        text = "" if value is None else value
        weight = turn.pop("loss", turn.pop("weight", turn.pop("train", None)))
        spoken.append({"from": role, "value": text, **turn, **({} if weight is None else {"loss": weight})})
    return spoken, files


def _parts(parts: Sequence[Any], where: str, files: dict[str, list[Any]]) -> str:
    """Return the parts of a message as one text, with a placeholder and a newline for each picture."""
    said = ""
    for part in parts:
        if not isinstance(part, dict):
            raise Unfit("turns", f"{where} holds {named(part)}, expected parts: {{type: text or image, …}}")
        part = {name: value for name, value in part.items() if not _absent(value)}
        kind = part.get("type")
        if kind in TEXT_TYPES or (kind is None and "text" in part):
            text = part.get("text", "")
            if not isinstance(text, str):
                raise Unfit("turns", f"{where}: `text` is {named(text)}, not a text")
            said += text[1:] if said.endswith(">\n") and text.startswith("\n") else text
        elif kind in IMAGE_TYPES or kind in VIDEO_TYPES:
            what = "image" if kind in IMAGE_TYPES else "video"
            names = (kind, what, f"{what}_url", "url", "path", "base64", "data")
            file = next((part[name] for name in names if name in part), None)
            if file is not None:
                files[what] += _files(file, what)
            said += f"<{what}>\n"  # as `vlm serve` and `vlm chat` write it
        else:
            raise Unfit(
                "turns", f"{where} holds a part of type {printable(repr(kind), 40)}, expected text, image or video"
            )
    return said


def _files(value: Any, key: str) -> list[Any]:
    """Return what a field names as files: paths, addresses, bytes, {bytes, path}, {url}."""
    if value is None:
        return []
    found: list[Any] = []
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, dict):
            names = ("bytes", "path", "url", "base64", "data", "file_name")
            given = next((one[name] for name in names if not _absent(one.get(name))), None)
            if given is None:
                raise Unfit("path", f"`{key}` is an object without bytes, path or url: {printable(', '.join(one), 60)}")
            one = given
        found.append(one)
    return found


def _absent(value: Any) -> bool:
    """Return whether a field has no value: null, NaN, an empty cell, an empty list."""
    return value is None or value != value or (isinstance(value, (str, list, bytes)) and not value)


JSON_COLUMNS = {*IMAGE, *VIDEO, *OPTIONS, "conversations", "conversation", "messages", "texts", "history", "answers"}


def _opened(name: str, value: Any) -> Any:
    """Return a list or an object that a table can only write as JSON; a question and an answer stay text."""
    if name in JSON_COLUMNS and isinstance(value, str) and value[:1] in ("[", "{") and value.rstrip()[-1:] in "]}":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
