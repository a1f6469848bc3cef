"""Read files of saved predictions, ours or others'. The keys of the records determine the format.

    read = read_predictions([Path("pred.json")], groups=["CLEVR-Change", "ALFRED"])      # read.format, read.predictions

`match` finds the item of each prediction, `score` scores it.
"""

import json
import math
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.core.errors import DataError
from vlm.core.home import split_lines
from vlm.core.spill import Spilled
from vlm.core.text import printable

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 3
"""Examples shown of each problem."""

Record = dict[str, Any]
"""A record as its file has it: nothing is known of its values before they are checked."""


@dataclass(frozen=True)
class Format:
    """The keys that every record of a format has, and which of them hold the reply, the id and the reference answer.

    `ids` are tried in their order; without any the records are in data order. `reference` proves a match to an item.
    """

    name: str
    keys: set[str]
    reply: str
    ids: tuple[str, ...] = ()
    reference: str | None = None


OWN = Format("results.jsonl of vlm eval", {"id", "outcome", "completion"}, "completion", ("id",), "gold")
INFER = Format("replies of vlm infer", {"id", "outcome", "reply", "key"}, "reply", ("id",))
VLMEVALKIT = "VLMEvalKit or MMBench table"

FORMATS = (
    OWN,
    INFER,
    Format("lmms-eval samples", {"doc_id", "filtered_resps"}, "filtered_resps", ("doc_id",), "target"),
    Format("lmms-eval samples", {"doc_id", "resps"}, "resps", ("doc_id",), "target"),
    Format("MileBench pred.json", {"sample_id", "pred_response"}, "pred_response", ("sample_id",), "gt_response"),
    Format("Long-VQA result", {"id", "an", "pr"}, "pr", ("id",), "an"),
    Format("MathVista result", {"pid", "response"}, "response", ("pid",), "answer"),
    Format("MM-NIAH result", {"question_id", "response", "answer"}, "response", ("question_id",), "answer"),
    Format("SEED-Bench result", {"question_id", "prediction", "answer"}, "prediction", ("question_id",), "answer"),
    Format(VLMEVALKIT, {"index", "prediction"}, "prediction", ("id", "question_id", "index"), "answer"),
    Format("GQA predictions", {"questionId", "prediction"}, "prediction", ("questionId",)),
    Format("InternVL VQA result", {"questionId", "answer"}, "answer", ("questionId",), "annotation"),
    Format("InternVL VQA result", {"question_id", "answer", "annotation"}, "answer", ("question_id",), "annotation"),
    Format("LLaVA answers", {"question_id", "text"}, "text", ("question_id",)),
    Format("RefCOCO result", {"answer", "gt_bbox"}, "answer", (), "gt_bbox"),
    Format("MVBench result", {"pred", "gt"}, "pred", (), "gt"),
    Format("MME result", {"mme_line", "mme_reply"}, "mme_reply", ("mme_line",), "mme_gold"),
    Format("AI2D result", {"image", "answer", "annotation"}, "answer", ("image",), "annotation"),
    Format("ChartQA result", {"question", "answer", "annotation"}, "answer", (), "annotation"),
    Format("VQA result", {"question_id", "answer"}, "answer", ("question_id",)),
    Format("VizWiz submission", {"image", "answer"}, "answer", ("image",)),
    *(
        Format("records of id and reply", {name, reply}, reply, (name,), "gold")
        for name in ("id", "question_id", "questionId", "sample_id", "index", "pid")
        for reply in ("prediction", "response", "completion", "text", "output", "answer")
    ),
)
"""Formats; the first whose keys the records have applies. Sources: published evaluators, lmms-eval, VLMEvalKit."""

OWN_IDS = ("question_id", "questionId", "pid", "id", "index")
"""Keys under which the `doc` of an lmms-eval sample may hold the id of the dataset."""

QUESTION_KEYS = ("question", "prompt", "text", "input")
"""Keys that may hold the question; like the reference it proves a match to an item."""

GROUP_KEYS = ("group", "task_type", "task", "category")
"""Keys that may name the group of a record."""


@dataclass(frozen=True)
class Prediction:
    """One record of a file.

    Attributes:
        where: File and number of the record, for messages.
        group: Group that the record or its file names; "" for none.
        number: Place in its file and group, from 0.
        reply: The reply, of any type.
        ids: Candidate ids by their key, as the file has them.
        reference: The reference answer, where the file has one.
        question: The question, where the file has one.
        table: From a spreadsheet, where an empty cell is no reply and numbers are texts.
        outcome: In our own results and replies, the outcome of the item, and why; ("", "") in files of others.
    """

    where: str
    group: str
    number: int
    reply: Any
    ids: dict[str, Any] = field(default_factory=dict)
    reference: Any = None
    question: str | None = None
    table: bool = False
    outcome: tuple[str, str] = ("", "")


@dataclass
class Examples:
    """How many there are of something, and the first few."""

    n: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """Count one more."""
        self.n += 1
        if len(self.first) < SHOWN:
            self.first.append(example)


@dataclass
class ReadPredictions:
    """The predictions of all files and their formats; `bad`: places of records without a reply that is text.

    Beyond some thousands the predictions lie on the disk.
    """

    format: str
    predictions: Spilled[Prediction] = field(default_factory=Spilled)
    bad: Examples = field(default_factory=Examples)


def read_predictions(paths: Sequence[Path], groups: Sequence[str]) -> ReadPredictions:
    """Read the predictions in files and folders.

    Args:
        paths: Files, or folders of files.
        groups: Groups of the benchmark; names of files and folders, and records, may name one.

    Raises:
        DataError: No such file, an unreadable one, no records, or keys that no known format has.
    """
    files = [file for path in paths for file in _files(Path(path))]
    read, names = ReadPredictions(""), []
    for file in files:
        kind: Format | None = None
        counted = dict.fromkeys(["", *groups], 0)
        usual = group_of(file, groups)
        for where, record in _records(file):
            if record is None:
                continue
            if kind is None and isinstance(record, dict):
                kind = _format(record, file)
                names.append(kind.name)
            found = _prediction(file, kind, where, record, usual, counted) if kind else None
            if found is None:
                read.bad.add(where)
                continue
            read.predictions.append(found)
            counted[found.group] += 1
        if kind is None:
            raise DataError(f"{file} holds no predictions", expected="one record for each question")
    read.format = ", ".join(dict.fromkeys(names))
    return read


def _prediction(
    file: Path, kind: Format, where: str, record: Any, usual: str, counted: Mapping[str, int]
) -> Prediction | None:
    """Return the prediction of a record; None where it has no reply that is text.

    Args:
        file: Its file.
        kind: The format of the file.
        where: File and number of the record.
        record: The record.
        usual: Group that the name of the file names.
        counted: Group -> predictions of the file before this one.
    """
    if not isinstance(record, dict) or kind.reply not in record or not _is_text(record[kind.reply]):
        return None
    group = next((record[key] for key in GROUP_KEYS if _names(record.get(key), counted)), usual)
    table, harness = file.suffix.lower() in TABLES, "doc_id" in kind.ids
    reply = _unwrapped(record[kind.reply]) if harness else record[kind.reply]
    if reply is None and table and kind.name == VLMEVALKIT:
        reply = ""  # it writes an empty answer as an empty cell
    # newer versions leave `doc` out; what is known of the item is then in the values of the metrics
    about = [record.get("doc"), *record.values()] if harness else [record.get("doc")]
    docs = [source for source in about if isinstance(source, dict)]
    ids = {key: doc[key] for doc in reversed(docs) for key in OWN_IDS if harness and key in doc}
    ids |= {key: record[key] for key in kind.ids if key in record}
    sources = [*docs, record] if harness else [record, *docs]
    asked = [source[key] for source in sources for key in QUESTION_KEYS if key in source and key != kind.reply]
    question = next((text for text in asked if isinstance(text, str)), None)
    reference = record.get(kind.reference or "")
    outcome = (str(record["outcome"]), str(record.get("why") or "")) if kind in (OWN, INFER) else ("", "")
    outcome = ("truncated", outcome[1]) if outcome[0] == "length" else outcome
    return Prediction(where, group, counted[group], reply, ids, reference, question, table, outcome)


def _is_text(reply: Any) -> bool:
    """Return whether a reply can be written: half a surrogate pair, which JSON lets through, is no text."""
    try:
        str(reply).encode()
    except UnicodeEncodeError:
        return False
    return True


def _names(value: Any, groups: Container[str]) -> bool:
    return isinstance(value, str) and value != "" and value in groups


def _unwrapped(reply: Any) -> Any:
    while isinstance(reply, list) and len(reply) == 1:
        reply = reply[0]
    return reply


def _format(record: Record, file: Path) -> Format:
    for known in FORMATS:
        if known.keys <= record.keys():
            return known
    raise DataError(
        f"{file}: records with the keys {', '.join(map(str, record))}",
        expected="a known format; the simplest is one JSON object per line with `id` and `prediction`",
    )


def group_of(file: Path, groups: Sequence[str]) -> str:
    """Return the group that a file's name, or its folder's, contains as whole words: the longest; "" for none."""
    for name in (file.stem, file.parent.name):
        named = [g for g in groups if re.search(rf"(^|[_\-. ]){re.escape(g)}($|[_\-. ])", name, re.IGNORECASE)]
        if named:
            return max(named, key=len)
    return ""


# files ---------------------------------------------------------------------------------------------------------------

PATTERNS = ("**/pred.json", "**/result_*.jsonl", "**/*.jsonl", "**/*.txt", "**/*.json", "**/*.tsv", "**/*.xlsx")
"""Files of a folder that hold predictions: those of the first pattern with a match. Shards in `temp_*` are not read."""


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        for pattern in PATTERNS:
            files = [p for p in sorted(path.glob(pattern)) if not any(part.startswith("temp_") for part in p.parts)]
            if files:
                return files
        raise DataError(f"{path} holds no predictions", expected=f"files as {', '.join(PATTERNS)}")
    if not path.is_file():
        raise DataError(f"no such file: {path}", expected="predictions: .jsonl, .json, .tsv, .csv, .xlsx or .txt")
    return [path]


def _records(file: Path) -> Iterator[tuple[str, Any]]:
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise DataError(f"{file}: unknown kind of file", expected=", ".join(READERS))
    try:
        for number, record in enumerate(reader(file), 1):
            yield f"{file.name}:{number}", record
    except Exception as error:  # readers of tables and spreadsheets raise whatever they meet
        raise DataError(f"{file} cannot be read: {printable(error)}", fix="save it again") from error


def _json(file: Path) -> Iterator[Any]:
    """Read a list of records, an object from id to reply or record, an object with one list, or one record a line."""
    if _is_lines(file):
        with file.open(encoding="utf-8-sig", newline="\n") as lines:
            yield from _json_lines(lines)
        return
    content = file.read_text(encoding="utf-8-sig")
    try:
        value = json.loads(content, object_pairs_hook=_object)
    except json.JSONDecodeError:
        yield from _json_lines(split_lines(content))
        return
    pairs = value.pairs if isinstance(value, Pairs) else list(value.items()) if isinstance(value, dict) else []
    lists = [v for _, v in pairs if isinstance(v, list) and v and all(isinstance(x, dict) for x in v)]
    if isinstance(value, list):
        yield from value
    elif len(lists) == 1:
        yield from lists[0]
    elif isinstance(value, dict) and any(form.keys <= value.keys() for form in FORMATS):
        yield value
    elif any(isinstance(v, dict) for _, v in pairs):
        yield from ({"pid": name, "id": name, **v} if isinstance(v, dict) else v for name, v in pairs)
    else:
        yield from ({"id": name, "prediction": reply} for name, reply in pairs)


def _is_lines(file: Path) -> bool:
    """Return whether the first line with text is a whole value and others follow, which one JSON value is never."""
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        head = next((line for line in lines if line.strip()), "")
        if not any(line.strip() for line in lines):
            return False
    try:
        json.loads(head)
    except json.JSONDecodeError:
        return False
    return True


def _json_lines(lines: Iterable[str]) -> Iterator[Any]:
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line.strip() or "null", object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error


@dataclass(frozen=True)
class Pairs:
    """A JSON object in which a name occurs twice; a dict would silently keep the last."""

    pairs: list[tuple[str, Any]]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Pairs:
    return dict(pairs) if len({name for name, _ in pairs}) == len(pairs) else Pairs(pairs)


def _table(file: Path) -> Iterator[Record]:
    """Read TSV or CSV as text, and the cells of a spreadsheet as they are; None for empty ones."""
    import pandas as pd

    if file.suffix.lower() == ".xlsx":
        yield from _cells(pd.read_excel(file, dtype=object, keep_default_na=False, na_values=[""]))
        return
    separator = "," if file.suffix.lower() == ".csv" else "\t"
    with pd.read_csv(file, sep=separator, dtype=str, keep_default_na=False, na_values=[""], chunksize=CHUNK) as parts:
        for part in parts:
            yield from _cells(part)


def _cells(table: "pd.DataFrame") -> Iterator[Record]:
    for row in table.to_dict(orient="records"):
        yield {str(k): None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def _mme(file: Path) -> Iterator[Record]:
    """Read `<task>.txt` of MME: image, question, gold and reply, separated by tabs; ids are line numbers."""
    for line, text in enumerate(split_lines(file.read_bytes().decode("utf-8")), 1):
        cells = text.split("\t")
        if len(cells) < 4:
            raise ValueError(f"line {line} has {len(cells)} columns; image, question, gold and reply are expected")
        yield {"mme_line": line, "mme_gold": cells[2], "mme_reply": "\t".join(cells[3:])}


TABLES = (".tsv", ".csv", ".xlsx")
"""Endings of spreadsheets."""

CHUNK = 4096
"""Rows of a TSV or CSV file in memory at a time."""

READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".jsonl": _json,
    ".json": _json,
    ".txt": _mme,
    **dict.fromkeys(TABLES, _table),
}
"""Ending of a file -> function(file) -> records."""
