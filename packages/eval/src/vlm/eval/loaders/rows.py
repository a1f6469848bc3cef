"""A person's own table of questions: JSON list, JSON lines, CSV, TSV, parquet, a folder that `datasets` saved.

    table = Benchmark.model_validate({"name": "pets", "file": "/data/pets.csv", "scorer": "exact"})
    items = load_rows(table, Path("/data/pets.csv"))

Columns are known by their usual names (`cells.NAMES`), or named in the table's `options["columns"]`. Pictures are
paths, relative to the file, data URLs, base64 or bytes. A row that cannot be asked is an item with a fault: it counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vlm.core.errors import ConfigError, DataError, UnknownName
from vlm.core.fetch.miniature import MARKER
from vlm.core.home import home, resolve
from vlm.core.media_root import MediaRoot
from vlm.core.rows.forms import Unfit, normal
from vlm.core.rows.media import MediaStore
from vlm.core.rows.table import Table, open_table
from vlm.core.rows.text import Row
from vlm.core.sample.chat import user_message
from vlm.core.sample.fields import no_clip
from vlm.core.sample.records import Medium, Message, Part, image, read_record, text, video
from vlm.core.spill import Seen, Spilled
from vlm.core.text import printable
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.cells import (
    LETTERS,
    columns_of,
    gold_for,
    keys_of,
    letter_columns,
    need,
    plain_name,
    read_options,
    text_of,
)
from vlm.eval.loaders.choice import choice_question
from vlm.eval.loaders.common import CountTokens, Item, check_counts, refuse_repeated
from vlm.eval.loaders.pictures import picture_file

SCORERS_OF_ROWS = ("exact", "choice", "anls", "relaxed", "contains", "number", "judge")
"""Scorers that a table of a person's own file can name."""

INSTRUCTION = "Answer with the option's letter from the given choices directly."
"""What follows the options for the scorer `choice`, as published evaluators ask; `prompt: {choice: …}` replaces it."""

LOOKED_AT = 200
"""Rows whose keys are the columns."""

SPLITS = ("test", "validation", "val", "dev")
"""Parts of a set that are for evaluation, the likeliest first."""

TALKS = ("conversations", "conversation", "messages", "texts")
"""Columns with whole conversations."""


@dataclass(frozen=True)
class Questions:
    """An open table and what its columns hold. `talks`: there are rows that are conversations."""

    table: Table
    found: list[str]
    columns: dict[str, str]
    talks: bool

    @property
    def said(self) -> str:
        """What was found, in words."""
        held = ", ".join(f"{f} = {c}" for f, c in self.columns.items() if c != LETTERS)
        held = "conversations" + (f", or {held}" if "question" in self.columns else "") if self.talks else held
        return f"{printable(self.table.path)}: {self.table.said}; {printable(held, 300)}"


def open_questions(path: Path, columns: Mapping[str, str] | None = None) -> Questions:
    """Open a table and find its columns. `PATH:SPLIT` names a part of a set; by default the one for evaluation.

    Raises:
        DataError: No such table, or no row in it. UnknownName: no such split, field or column.
    """
    table = _open(path)
    first = [row.value for row in islice(table.rows(), LOOKED_AT) if not row.fault]
    found = keys_of(first)
    if not first and not any(True for _ in table.rows()):
        raise DataError(f"{printable(path)} holds no row", expected="at least one question")
    return Questions(table, found, columns_of(found, columns or {}, str(path)), any(map(is_talk, first)))


def is_talk(row: Mapping[str, Any]) -> bool:
    """Return whether a row is a conversation: turns under a usual name."""
    return any(
        value and (plain_name(key) in TALKS or (key == "prompt" and isinstance(value, list)))
        for key, value in row.items()
    )


def _open(path: Path) -> Table:
    name, colon, split = str(path).rpartition(":")
    if colon and not path.exists() and Path(name).exists():
        return open_table(Path(name), split)
    if not path.is_dir():
        return open_table(path)
    try:
        table = open_table(path)
    except DataError:  # several splits, and none is `train`
        table = None
    for split in SPLITS:
        if table is None or split in table.splits:
            try:
                return open_table(path, split)
            except UnknownName:
                continue
    return table or open_table(path)


def load_rows(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> Spilled[Item]:
    """Load the rows of the table's `file`; `folder` is not looked at. Source: ours.

    `options`: `columns` (field: column), `question` (asked in rows without one), `tolerance` (of numbers, a share),
    `outside` (folders that paths may lead to), `urls` (fetch addresses). `prompt`: `suffix` after each question, `join`
    before it, `choice` after options.

    Raises:
        DataError: No question or answer in the table, two rows of one id, or a fault behind which nothing is read.
        UnknownName: A scorer that needs more than a row holds. ConfigError: a judge beside other scorers.
    """
    scorers = [benchmark.scorer] if isinstance(benchmark.scorer, str) else list(benchmark.scorer.values())
    for scorer in scorers:
        if scorer not in SCORERS_OF_ROWS:
            raise UnknownName("scorer of own rows:", scorer, SCORERS_OF_ROWS)
    if len(scorers) > 1 and "judge" in scorers:
        raise ConfigError(f"{benchmark.name}: the scorer judge beside others", expected="one file for each")
    items = read_rows(benchmark, scored=True)
    if benchmark.counts or (Path(benchmark.file or "").parent / MARKER).is_file():
        check_counts(items, benchmark, Path(benchmark.file or "").parent)
    return items


def read_rows(benchmark: Benchmark, *, scored: bool) -> Spilled[Item]:
    """Return an item for each row, with its gold answer if it is to be `scored`; see `load_rows`.

    They are on the disk beyond some thousands, so that a file of any length can be read.
    """
    questions = open_questions(Path(benchmark.file or ""), benchmark.options.get("columns"))
    where = str(questions.table.path)
    if not questions.talks:
        if "question" not in benchmark.options:
            need(questions.columns, "question", questions.found, where)
        if scored:
            need(questions.columns, "answer", questions.found, where)
    reader = _RowReader(benchmark, questions, scored)
    items: Spilled[Item] = Spilled()
    last: Row | None = None
    with Seen() as seen:
        for number, row in enumerate(questions.table.rows(), 1):
            item = reader.item(number, row)
            refuse_repeated(item, seen, printable(row.where))
            items.append(item)
            last = row
    if last is not None and last.fault and questions.table.format != "JSON lines":
        raise DataError(f"{printable(last.where)}: {last.fault}", fix="repair the file: what it holds is not known")
    return items


class _RowReader:
    """Makes items of the rows of one table."""

    def __init__(self, benchmark: Benchmark, questions: Questions, scored: bool):
        options = benchmark.options
        self.benchmark, self.questions, self.scored = benchmark, questions, scored
        self.columns = questions.columns
        outside = tuple(resolve(folder) for folder in options.get("outside", ()))
        gate = MediaRoot(questions.table.root, outside)
        self.store = MediaStore(home() / ".cache", gate, urls=bool(options.get("urls")))

    def item(self, number: int, row: Row) -> Item:
        """Return the item of a row; of one that cannot be asked, with its fault."""
        try:
            if row.fault:
                raise Unfit("row", row.fault)
            return self._talk(number, row) if is_talk(row.value) else self._columns(number, row)
        except (Unfit, DataError) as error:
            why = error.found if isinstance(error, DataError) else str(error)
            place = printable(f"{Path(row.where).name}: {why}", 600)
            nothing: list[Message] = [{"role": "user", "content": [text("")]}]
            return Item(self._id(number, row), nothing, None, "all", {}, place, printable(f"{row.where}: {why}", 700))

    def _cell(self, row: Row, field: str) -> Any:
        value = row.value.get(self.columns[field]) if field in self.columns else None
        return None if value is None or value != value else value

    def _id(self, number: int, row: Row) -> str:
        value = self._cell(row, "id")
        good = isinstance(value, str | int | float) and not isinstance(value, bool)
        return text_of(value, "id").strip() if good and str(value).strip() else f"row {number}"

    def _columns(self, number: int, row: Row) -> Item:
        asked = self._cell(row, "question")
        if asked is None and "question" in self.benchmark.options:
            asked = self.benchmark.options["question"]
        question = text_of(asked, "question")
        group = self._cell(row, "group")
        group = "all" if group is None or group == "" else text_of(group, "group")
        scorer = self._scorer(group)
        options = self._options(row)
        media = self._media(row)
        shown = question
        if options:
            suffix = self.benchmark.prompt.get("choice", INSTRUCTION if scorer == "choice" else "")
            shown = choice_question(question, options, suffix).rstrip("\n")
        if after := self.benchmark.prompt.get("suffix"):
            shown += self.benchmark.prompt.get("join", "\n") + after
        if not media and "<image>" in shown:
            raise Unfit("question", f"`question` holds {shown.count('<image>')} <image>, but the row has no picture")
        messages = [user_message(shown, media, where=f"`{self.columns.get('question', 'question')}`")]
        gold = gold_for(scorer, self._cell(row, "answer"), options) if self.scored else None
        return Item(self._id(number, row), messages, gold, group, self._meta(question, options, media))

    def _talk(self, number: int, row: Row) -> Item:
        """Return the item of a conversation: the last answer is the reference, what is before it is asked."""
        record = dict(normal(row.value).record)
        for key in ("image", "video"):
            if key in record:
                record[key] = [str(self._file(value, key)) for value in record[key]]
        sample = read_record(record, root=MediaRoot(Path("/")), where=f"row {number}")
        messages = [*sample.messages]
        said: list[Part] = []
        if messages[-1]["role"] == "assistant":
            said = [*messages.pop()["content"]]
        if not messages:
            raise Unfit("turns", "no question, expected a turn of the user")
        answer = "".join(part["text"] for part in said if part["type"] == "text")
        gold = gold_for(self._scorer("all"), answer, {}) if self.scored else None
        question = "".join(part["text"] for part in messages[-1]["content"] if part["type"] == "text").strip()
        return Item(self._id(number, row), messages, gold, "all", self._meta(question, {}, sample.media))

    def _scorer(self, group: str) -> str:
        try:
            return self.benchmark.scorer_of(group)
        except KeyError as error:
            known = ", ".join(self.benchmark.scorer) if isinstance(self.benchmark.scorer, dict) else ""
            raise Unfit("group", f"`group` is {printable(group, 40)!r}, expected one with a scorer: {known}") from error

    def _options(self, row: Row) -> dict[str, str]:
        if self.columns.get("options") == LETTERS:
            return read_options(letter_columns(row.value))
        return read_options(self._cell(row, "options"))

    def _media(self, row: Row) -> list[Medium]:
        """Return the pictures or the video of a row; none where the row says so by null, an empty list or no key."""
        pictures: list[Medium] = [image(self._file(value, "image")) for value in self._files(row, "image")]
        clip = row.value.get("clip") if self._files(row, "video") else None
        if clip is not None and (why := no_clip(clip)):
            raise Unfit("clip", f"`clip` {why}")
        span = None if clip is None else (float(clip[0]), float(clip[1]))
        return pictures + [video(self._file(value, "video"), span) for value in self._files(row, "video")]

    def _files(self, row: Row, key: str) -> list[Any]:
        if key not in self.columns:
            return []
        value = self._cell(row, key)
        if isinstance(value, str) and not value.strip():
            raise Unfit(key, f"`{key}` is empty, expected a path; null or no key where there is none")
        found: dict[str, Any] = normal({key: value, "question": "-", "answer": "-"}).record
        return list(found.get(key, ()))

    def _file(self, value: Any, key: str) -> Path:
        content = self.store.content(value, "video" if key == "video" else "image")
        if isinstance(content, bytes):
            if key == "video":
                raise Unfit("video", "`video` holds bytes, expected a path")
            return picture_file(self.store.out, content, f"`{key}`")
        return content.absolute()

    def _meta(self, question: str, options: dict[str, str], media: list[Medium]) -> dict[str, Any]:
        meta: dict[str, Any] = {"question": question, "tolerance": float(self.benchmark.options.get("tolerance", 0))}
        meta |= {"options": options} if options else {}
        if media:
            path, root = Path(media[0]["path"]), self.questions.table.root.absolute()
            meta["cluster"] = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        return meta


LOADERS = {"rows": load_rows}
