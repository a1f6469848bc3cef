"""What every loader uses: `Item`, checked fields of a record, and `Items`, which checks every item and the counts.

A loader is a function from a table and a folder to items:

    def load_mine(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
        path, items = folder / "test.jsonl", Items()
        for line, record in iter_jsonl(path):
            where = f"{path}:{line}"
            image = inside(folder, get(record, "image", str, where), where)
            question = get(record, "question", str, where) + benchmark.prompt["suffix"]
            gold = get(record, "answer", str, where)
            items.add(Item(str(line), user(question, [image], where), gold, "all"), where=where, images=[image])
        return items.finish(benchmark, folder)

    LOADERS = {"mine": load_mine}
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from vlm.core.errors import DataError
from vlm.core.fetch.miniature import MARKER
from vlm.core.home import read_json
from vlm.core.sample.chat import IMAGE, user_message
from vlm.core.sample.records import Message, image
from vlm.core.spill import CODEC, Seen
from vlm.eval.benchmark import Benchmark

CountTokens = Callable[[str], int]
"""function(text) -> number of tokens."""

FETCH = "`vlm download` fetches the benchmark"
"""The fix for files that are missing or damaged."""


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        id: Unique within the benchmark.
        messages: One user message with absolute image paths; with teacher forcing, the answer as a second message.
        gold: What the scorer compares with; None where a server keeps the answers.
        group: Metrics are also computed for the rows of each group.
        meta: Small JSON. `cluster`: items that share it are not independent. `set`: rows that count together.
            `max_new_tokens`: the budget of this item. Other keys are for scorers and aggregates.
        fault: Why the item cannot be asked: its outcome is `error`, with this reason.
        missing: The place of the row and its first picture or video that is not on the disk; "" when all are.
        asked: What the question is about, where the set says it: numbers of images from 0, or texts of the prompt.
    """

    id: str
    messages: list[Message]
    gold: Any
    group: str
    meta: dict[str, Any] = field(default_factory=dict)
    fault: str = ""
    missing: str = ""
    asked: tuple[int | str, ...] = ()


class Loader(Protocol):
    """A function from a table and its data folder to items. `count_tokens` measures length budgets."""

    def __call__(
        self, benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None
    ) -> Sequence[Item]:
        """Load all items."""


def approximate_tokens(value: str) -> int:
    """Estimate tokens as four characters each, for length budgets without a tokenizer."""
    return len(value) // 4 + 1


def get(record: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Return `record[key]`.

    Raises:
        DataError: The key is missing, or its value is of another type; names `where`.
    """
    if not isinstance(record, dict) or key not in record:
        raise DataError(f"{where}: no `{key}`", expected=f"a record with `{key}`")
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{where}: `{key}` is {value!r:.60}", expected=f"{kind}")
    return value


def inside(folder: Path, name: str, where: str) -> Path:
    """Return the absolute path of `name` in `folder`, without the `data/<set>/` with which published lists begin.

    Raises:
        DataError: The path is absolute, or leaves the folder.
    """
    parts = PurePosixPath(name).parts
    if PurePosixPath(name).is_absolute() or ".." in parts or not parts:
        raise DataError(f"{where}: image path {name!r}", expected=f"a path below {folder}")
    return folder.absolute().joinpath(*(parts[2:] if parts[0] == "data" else parts))


class Items:
    """Collect the items of a benchmark in data order, and refuse what would change a score silently."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self._seen = Seen()
        self._present: set[Path] = set()

    def add(
        self, item: Item, *, where: str, images: Iterable[Path], needs_image: bool = True, needs_answer: bool = True
    ) -> None:
        """Append an item; a row without an image is kept, with its fault.

        Args:
            item: What was read.
            where: The file and row it was read from, for errors.
            images: The files that it shows.
            needs_image: Whether an item without images has a fault.
            needs_answer: Whether there must be a gold answer; a set that a server scores has none.

        Raises:
            DataError: The id was used before, or the answer is empty. A missing file is noted in the item.
        """
        refuse_repeated(item, self._seen, where)
        empty = item.gold is None or item.gold == [] or (isinstance(item.gold, str) and not item.gold.strip())
        if empty and needs_answer:
            raise DataError(f"{where}: empty answer", expected="a reference answer in every row")
        images = list(images)
        if needs_image and not images:
            item = replace(item, fault=f"{Path(where).name}: the row has no image")
        if gone := next((path for path in images if not self._is_here(path)), None):
            lost = f"{where}: image {gone} is missing"
            item = replace(item, missing=lost, fault=f"{Path(where).name}: {gone.name} is missing")
        self.items.append(item)

    def _is_here(self, path: Path) -> bool:
        with suppress(OSError):  # a name that no disk can hold
            if path not in self._present and path.is_file():
                self._present.add(path)
        return path in self._present

    def finish(self, benchmark: Benchmark, folder: Path) -> list[Item]:
        """Return the items, if each group has the expected number of them.

        Raises:
            DataError: The download is short (or long), or the marker is of another benchmark.
        """
        check_counts(self.items, benchmark, folder)
        return self.items


def refuse_repeated(item: Item, seen: Seen, where: str) -> None:
    """Raise DataError where an item before this one has its id."""
    if first := seen.before("id", item.id.encode(*CODEC), where):
        raise DataError(f"{where}: id {item.id!r} was used before, at {first}", expected="one row per id")


def check_counts(items: Iterable[Item], benchmark: Benchmark, folder: Path) -> None:
    """Raise DataError where a group has another number of items than its table or its marker says."""
    found: Counter[str] = Counter()
    lost = ""
    for item in items:
        found[item.group] += 1
        lost = lost or (f"; and {item.missing}" if item.missing else "")
    expected, at_least = _expected(benchmark, folder)
    wrong = [
        f"{group}: {found[group]} of {expected.get(group, 0)}"
        for group in sorted(set(found) | set(expected))
        if (found[group] < expected.get(group, 0) if at_least else found[group] != expected.get(group, 0))
    ]
    if wrong:
        raise DataError(
            f"short download: {folder} does not hold the items of {benchmark.title}: {', '.join(wrong)}{lost}",
            expected=f"{'at least ' if at_least else ''}{sum(expected.values())} items, found {found.total()}",
            fix=f"fetch it again, or, for a part on purpose, put a {MARKER} beside it and name it by --data",
        )


def _expected(benchmark: Benchmark, folder: Path) -> tuple[dict[str, int], bool]:
    marker = folder / MARKER
    if marker.is_file():
        content = read_json(marker, fix="make the miniature again in an empty folder")
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
    """Make one user message. As published, images go in front, a line each, if the text has no `<image>` mark.

    Raises:
        DataError: The number of marks is neither 0 nor the number of images.
    """
    if not images and IMAGE in question:
        raise DataError(
            f"{where}: {question.count(IMAGE)} {IMAGE} placeholders but 0 media", expected="one placeholder for each"
        )
    return [user_message(question, [image(path) for path in images], where=where)]
