"""What every loader needs: the Item, fields of a record with good errors, and the checks that no file can evade."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from vlm.core.errors import DataError
from vlm.core.sample.records import Message, image, split_placeholders, text
from vlm.eval.benchmark import Benchmark

CountTokens = Callable[[str], int]
MARKER = "mini.json"


@dataclass(frozen=True)
class Item:
    """One question. `messages` is one user message with absolute image paths; `meta` is JSON and small, and may hold
    `cluster` (items that share it are not independent) and `max_new_tokens`. An item with a `fault` is never asked: its
    outcome is `error`, and the fault is why."""

    id: str
    messages: list[Message]
    gold: Any
    group: str
    meta: dict[str, Any] = field(default_factory=dict)
    fault: str = ""


def approximate_tokens(value: str) -> int:
    """Four characters a token: used for length budgets when no tokenizer is given."""
    return len(value) // 4 + 1


def get(record: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """`record[key]`. Raises DataError naming `where` when it is absent or of another type."""
    if not isinstance(record, dict) or key not in record:
        raise DataError(f"{where}: no `{key}`", expected=f"a record with `{key}`")
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{where}: `{key}` is {value!r:.60}", expected=f"{kind}")
    return value


def read_json(path: Path) -> Any:
    """A JSON file. Raises DataError naming it when it is missing or does not parse."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"no such file: {path}", fix="`vlm download` fetches the benchmark") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}", fix="fetch the file again") from error


def inside(folder: Path, name: str, where: str) -> Path:
    """`folder`/`name`, absolute. Published lists write paths from their working folder: a leading `data/<set>/` is cut.

    Raises:
        DataError: an absolute path, or one that leaves the folder.
    """
    parts = PurePosixPath(name).parts
    if PurePosixPath(name).is_absolute() or ".." in parts or not parts:
        raise DataError(f"{where}: image path {name!r}", expected=f"a path below {folder}")
    return folder.absolute().joinpath(*(parts[2:] if parts[0] == "data" else parts))


class Items:
    """Collects the items of a benchmark in data order; refuses what would change a score without a word."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self._where: dict[str, str] = {}
        self._present: set[Path] = set()

    def add(
        self, item: Item, *, where: str, images: Iterable[Path], needs_image: bool = True, needs_answer: bool = True
    ) -> None:
        """Append `item` that was read at `where` (file:row) and shows `images`; a row without one is kept, with its
        fault. A set that a server scores needs no answers.

        Raises:
            DataError: duplicate id, no answer, or an image file that is not there.
        """
        if item.id in self._where:
            raise DataError(
                f"{where}: id {item.id!r} was used before, at {self._where[item.id]}", expected="one row per id"
            )
        self._where[item.id] = where
        empty = item.gold is None or item.gold == [] or (isinstance(item.gold, str) and not item.gold.strip())
        if empty and needs_answer:
            raise DataError(f"{where}: empty answer", expected="a reference answer in every row")
        images = list(images)
        if needs_image and not images:
            item = replace(item, fault=f"{Path(where).name}: the row has no image")
        for path in images:
            if path not in self._present and not path.is_file():
                raise DataError(f"{where}: image {path} is missing", fix="fetch or unpack the images again")
            self._present.add(path)
        self.items.append(item)

    def finish(self, benchmark: Benchmark, folder: Path) -> list[Item]:
        """The items, when each group has the expected number of them.

        Raises:
            DataError: a short (or long) download, or a marker of another benchmark.
        """
        found = Counter(item.group for item in self.items)
        expected, at_least = _expected(benchmark, folder)
        wrong = [
            f"{group}: {found[group]} of {expected.get(group, 0)}"
            for group in sorted(set(found) | set(expected))
            if (found[group] < expected.get(group, 0) if at_least else found[group] != expected.get(group, 0))
        ]
        if wrong:
            raise DataError(
                f"short download: {folder} holds another number of items than {benchmark.title} has: "
                + ", ".join(wrong),
                expected=f"{'at least ' if at_least else ''}{sum(expected.values())} items, found {found.total()}",
                fix=f"fetch it again, or put a {MARKER} beside the data if it is a miniature on purpose",
            )
        return self.items


def _expected(benchmark: Benchmark, folder: Path) -> tuple[dict[str, int], bool]:
    marker = folder / MARKER
    if marker.is_file():
        content = read_json(marker)
        name = get(content, "benchmark", str, str(marker))
        get(content, "seed", int, str(marker))
        counts = get(content, "counts", dict, str(marker))
        if name.lower() != benchmark.name.lower():
            raise DataError(f"{marker}: made for {name}", expected=benchmark.name, fix="use its own folder")
        return counts, False
    if benchmark.counts is None:
        raise DataError(f"{folder} has no {MARKER}", expected="a generated set with its marker")
    return benchmark.counts.groups, benchmark.counts.at_least


def user(question: str, images: list[Path], where: str) -> list[Message]:
    """One user message. As published, images without an `<image>` in the text go in front, each with a newline.

    Raises:
        DataError: the number of `<image>` marks is neither 0 nor the number of images.
    """
    marks = question.count("<image>")
    if not images:
        if marks:
            raise DataError(f"{where}: {marks} <image> marks but no image", expected="as many images as marks")
        return [{"role": "user", "content": [text(question)]}]
    if marks == 0:
        question = "<image>\n" * len(images) + question
    elif marks != len(images):
        raise DataError(f"{where}: {marks} <image> marks but {len(images)} images", expected="as many as images")
    parts = split_placeholders(question, iter([image(path) for path in images]), "<image>")
    return [{"role": "user", "content": parts}]
