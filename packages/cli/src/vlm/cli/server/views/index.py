"""The rows of one results.jsonl in memory: what the list shows, and one text of all rows that is searched at once.

index = SampleIndex(Path("runs/x/eval/m/POPE/default"), "x/eval/m/POPE/default", head)
index.search("a red dog")            # numbers of the rows
"""

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from vlm.cli.server.views.runs import EvaluationHead
from vlm.cli.server.views.tail import object_of, stamp_of
from vlm.core.errors import DataError
from vlm.core.reading import open_regular

SHORT = 160
"""Characters of a question and a reply in the list."""

LONGEST = 1 << 28
"""Bytes of a line that is read; a longer one counts as damaged."""

BREAK = "\x00"
"""Between two rows of the searched text."""


class SampleLine(NamedTuple):
    """A row of the list. `asked`: the image that stands for it. `offset`: where its line starts, in bytes."""

    id: str
    group: str
    outcome: str
    score: float | None
    strict: float | None
    question: str
    reply: str
    gold: str
    images: int
    asked: int
    offset: int


class SampleIndex:
    """Reads a results.jsonl once. Lines that cannot be read are counted in `damaged` and left out.

    Raises:
        DataError: It is no regular file, nobody here may read it, or its disk does not answer.
    """

    def __init__(self, folder: Path, id_: str, head: EvaluationHead):
        self.folder, self.id, self.head = folder, id_, head
        self.stamp = stamp_of(folder / "results.jsonl")
        self.rows: list[SampleLine] = []
        self.numbers: dict[str, int] = {}
        self.damaged = 0
        self.text = ""
        self._starts: list[int] = []
        with unreadable(folder / "results.jsonl"):
            self._read(keep_rows=True)
        self.groups = Counter(row.group for row in self.rows)

    def _read(self, *, keep_rows: bool) -> None:
        texts: list[str] = []
        starts, at, offset = [], 0, 0
        with open_regular(self.folder / "results.jsonl") as file:
            while line := file.readline(LONGEST):
                row = object_of(line)
                made = line_of(row, offset) if row is not None else None
                if row is not None and made is not None:
                    text = searched(row, made) + BREAK
                    texts.append(text)
                    starts.append(at)
                    at += len(text)
                    if keep_rows:
                        self.numbers.setdefault(made.id, len(self.rows))
                        self.rows.append(made)
                elif keep_rows and line.strip():
                    self.damaged += 1
                offset += len(line)
        self.text, self._starts = "".join(texts), starts

    def forget_text(self) -> None:
        """Give the searched text back; the next search reads it again."""
        self.text, self._starts = "", []

    def search(self, words: str) -> list[int]:
        """Return the numbers of the rows that hold the words as they stand, in upper or lower case."""
        if not self.text and self.rows:
            with unreadable(self.folder / "results.jsonl"):
                self._read(keep_rows=False)
        text, starts, found, at = self.text, self._starts, list[int](), 0
        wanted = words.lower().replace(BREAK, "")
        while wanted and (at := text.find(wanted, at)) >= 0:
            number = bisect_right(starts, at) - 1
            found.append(number)
            at = starts[number + 1] if number + 1 < len(starts) else len(text)
        return [n for n in found if n < len(self.rows)]

    def read(self, number: int) -> dict[str, Any]:
        """Return the whole row of a number.

        Raises:
            DataError: The file changed meanwhile.
        """
        line = self.rows[number]
        path = self.folder / "results.jsonl"
        with unreadable(path), open_regular(path) as file:
            file.seek(line.offset)
            row = object_of(file.readline(LONGEST))
        if row is None or str(row.get("id")) != line.id:
            raise DataError(f"{path} changed while it was read", fix="open the page again")
        return row


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Turn what the system says of a file into a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", fix="see who may read it: ls -l") from error


def line_of(row: dict[str, Any], offset: int) -> SampleLine | None:
    """Return the row of the list; None for an object that is no row of results."""
    from vlm.eval.saved.evaluations import asked_of, sample_row

    try:
        small = sample_row(row, offset)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    images = row.get("images")
    return SampleLine(
        id=small.id,
        group=str(small.group),
        outcome=str(small.outcome),
        score=small.score,
        strict=small.strict,
        question=question_of(str(row.get("prompt") or "")),
        reply=str(row.get("completion") or "")[:SHORT],
        gold=written(row.get("gold"))[:SHORT],
        images=len(images) if isinstance(images, list) else 0,
        asked=next((n for n in asked_of(row) if isinstance(n, int)), 0),
        offset=offset,
    )


def question_of(prompt: str) -> str:
    """Return what a list shows of a prompt: without marks of media, and of a long context its end, the question."""
    if len(prompt) > 4 * SHORT:
        prompt = "… " + prompt[-SHORT:]
    return " ".join(prompt.replace("<image>", " ").replace("<video>", " ").split())[: SHORT + 2]


def written(gold: Any) -> str:
    """Return a reference answer in words."""
    if isinstance(gold, str):
        return gold
    if isinstance(gold, list) and gold and all(isinstance(word, str) for word in gold):
        return " | ".join(gold)
    return json.dumps(gold, ensure_ascii=False)


def searched(row: dict[str, Any], line: SampleLine) -> str:
    """Return the text of a row in which words are looked for, in lower case."""
    parts = (
        line.id,
        line.group,
        str(row.get("prompt") or ""),
        str(row.get("completion") or ""),
        written(row.get("gold")),
    )
    return "\n".join(parts).lower().replace(BREAK, "")
