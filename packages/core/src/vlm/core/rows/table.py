"""One reader of rows: JSON list, JSON lines, CSV, TSV, parquet, a folder that `datasets` saved, a folder of files.

table = open_table(Path("pets.csv"))
print(table.format, table.count())
for row in table.rows():            # row.where, row.value; row.fault says why there is no value
    ...
for where, value in table.values():  # the same, but the first fault is a DataError
    ...
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError, UnknownName
from vlm.core.extras import require
from vlm.core.home import read_json
from vlm.core.reading import is_folder
from vlm.core.rows.arrow import arrow_rows, count_arrow
from vlm.core.rows.text import HEAD, Row, csv_rows, json_lines, json_list, open_text
from vlm.core.sample.lines import BLANK, OTHER_FORMS
from vlm.core.text import printable

KINDS = {
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".json": "JSON list",
    ".csv": "CSV",
    ".tsv": "TSV",
    ".parquet": "parquet",
    ".arrow": "Arrow",
}
"""Suffix of a file -> the format of its rows."""
READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "JSON lines": json_lines,
    "JSON list": json_list,
    "CSV": csv_rows,
    "TSV": partial(csv_rows, delimiter="\t"),
    "parquet": arrow_rows,
    "Arrow": arrow_rows,
}
PARQUET = "reading parquet and Arrow files"
"""What needs the extra `tables`."""
OURS = ("records.jsonl", "manifest.json", "ledger.jsonl")
"""Files of a folder that `vlm.core.rows.write` made."""
SHEETS = (".xlsx", ".xls", ".ods", ".numbers")
EXPECTED = "a .json, .jsonl, .csv, .tsv, .parquet or .arrow file, or a folder of them"
SPLITS = ("train", "validation", "valid", "val", "dev", "test")
"""Parts of a set that file names begin with."""


@dataclass(frozen=True)
class Table:
    """Rows of one or more files of one format.

    Attributes:
        path: What was named.
        format: Of the files: a value of `KINDS`.
        files: In order.
        root: Folder that relative paths in the rows start from.
        split: The part of the set; "" where it has none.
        splits: The parts that there are.
    """

    path: Path
    format: str
    files: tuple[Path, ...]
    root: Path
    split: str = ""
    splits: tuple[str, ...] = ()

    def rows(self) -> Iterator[Row]:
        """Yield each row with its place; one that cannot be read has a `fault`."""
        for file in self.files:
            yield from READERS[self.format](file)

    def values(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the place and the value of each row. Raises DataError for the first that cannot be read."""
        for row in self.rows():
            if row.fault:
                raise DataError(f"{printable(row.where)}: {row.fault}", fix="repair or remove it")
            yield row.where, row.value

    def count(self) -> int:
        """Return the number of rows, those that cannot be read included."""
        if self.format in ("parquet", "Arrow"):
            return sum(map(count_arrow, self.files))
        return sum(1 for _ in self.rows())

    @property
    def said(self) -> str:
        """What was found, in words."""
        split = f", split {self.split} of {', '.join(self.splits)}" if len(self.splits) > 1 else ""
        return f"{self.format}{f' in {len(self.files)} files' if len(self.files) > 1 else ''}{split}"


def open_table(path: Path, split: str | None = None) -> Table:
    """Return what a file or folder of rows is. No row is read yet.

    Args:
        path: The file or folder.
        split: Part of a set that has several; default `train`, or the only one.

    Raises:
        DataError: Missing, empty, or of a format that is not read.
        UnknownName: No such split.
    """
    path = Path(path)
    if is_folder(path):
        return _folder(path, split)
    format = _format(path)
    return Table(path, format, (path,), path.parent)


def _format(path: Path) -> str:
    """Return the format of a file by its first bytes, and by its suffix where these do not tell."""
    if path.suffix.lower() in SHEETS:
        raise DataError(f"{printable(path)} is a spreadsheet", expected=EXPECTED, fix="save it as CSV (UTF-8)")
    file, encoding = open_text(path)
    with file:
        head = file.read(HEAD)
    if head.startswith(b"PAR1"):
        require("tables", PARQUET)
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        require("tables", PARQUET)
        return "Arrow"
    for begin, (what, fix) in OTHER_FORMS.items():
        if begin != b"[" and head.startswith(begin):
            raise DataError(f"{printable(path)} {what}", expected=EXPECTED, fix=fix)
    text = head.decode(encoding, "ignore").lstrip(BLANK.decode())
    if not text:
        raise DataError(f"{printable(path)} is empty", expected=EXPECTED)
    known = KINDS.get(path.suffix.lower())
    if known is not None and known in ("CSV", "TSV"):
        return known
    if text.startswith("["):
        return "JSON list"
    if known == "JSON lines" or (text.startswith("{") and _is_line(path)):
        return "JSON lines"
    what = "is one JSON object" if text.startswith("{") else "is of no format that is known by its name or begin"
    advice = "write its records as one list, for example: jq .KEY OLD > NEW.json" if text.startswith("{") else None
    raise DataError(f"{printable(path)} {what}", expected=EXPECTED, fix=advice)


def _is_line(path: Path) -> bool:
    """Return whether the first line is a whole object with records behind it, or the only one."""
    row = next(json_lines(path), None)
    return row is not None and row.fault is None


def _folder(path: Path, split: str | None) -> Table:
    """Return the table of a folder: saved by `datasets`, downloaded from the hub, or made by hand."""
    if (path / "dataset_dict.json").is_file():
        said = read_json(path / "dataset_dict.json")
        names = said.get("splits") if isinstance(said, dict) else None
        if not isinstance(names, list) or not all(isinstance(n, str) and "/" not in n and n != ".." for n in names):
            raise DataError(f"{path}/dataset_dict.json names no splits", expected='{"splits": ["train", ...]}')
        chosen = _chosen(path, names, split)
        inner = _folder(path / chosen, None)
        return Table(path, inner.format, inner.files, path, chosen, tuple(names))
    if (path / "state.json").is_file():
        return _saved(path)
    if all((path / name).is_file() for name in OURS):
        return Table(path, "JSON lines", (path / OURS[0],), path)
    found = [file for file in sorted(path.rglob("*")) if _is_rows(file, path)]
    if not found:
        raise DataError(f"no file of rows in {printable(path)}", expected=EXPECTED)
    tables = [file for file in found if file.suffix.lower() in (".parquet", ".arrow")] or found
    parts: dict[str, list[Path]] = {}
    for file in tables:
        parts.setdefault(_split_of(file, path), []).append(file)
    chosen = _chosen(path, list(parts), split)
    files = parts[chosen]
    formats = {_format(file) for file in files}
    if len(formats) > 1 or (len(files) > 1 and len({f.parent for f in files}) > 1 and "" in parts):
        names_ = ", ".join(printable(f.relative_to(path)) for f in files[:5])
        raise DataError(f"{printable(path)} holds files of several kinds: {names_}", fix="name one of them")
    root = files[0].parent if files[0].stem == "metadata" else path
    return Table(path, formats.pop(), tuple(files), root, chosen, tuple(parts))


def _is_rows(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    notes = file.suffix.lower() == ".json" and file.name in ("dataset_info.json", "dataset_infos.json", "state.json")
    return file.suffix.lower() in KINDS and not hidden and not notes and not is_folder(file)


def _split_of(file: Path, root: Path) -> str:
    """Return the split that a file belongs to: a word of its name or of its folder; "" for none."""
    words = re.split(r"[-_.]", file.stem.lower()) + [part.lower() for part in file.relative_to(root).parts[:-1]]
    return next((name for name in SPLITS if name in words), "")


def _chosen(path: Path, names: Sequence[str], split: str | None) -> str:
    if split is not None:
        if split not in names:
            raise UnknownName("split", printable(split), [n for n in names if n] or ["(no splits)"])
        return split
    if len(names) == 1 or "train" in names:
        return "train" if "train" in names else names[0]
    raise DataError(
        f"{printable(path)} has the splits {', '.join(map(printable, names))}", fix="choose one: NAME:SPLIT"
    )


def _saved(path: Path) -> Table:
    """Return the table of a folder that `save_to_disk` wrote."""
    require("tables", PARQUET)
    state = read_json(path / "state.json")
    try:
        names = [item["filename"] for item in state["_data_files"]]
        good = all(isinstance(n, str) and "/" not in n and n.endswith(".arrow") for n in names)
    except (TypeError, KeyError):
        good, names = False, []
    if not good or not names:
        raise DataError(f"{path}/state.json names no data files", expected="a folder that `save_to_disk` wrote")
    files = tuple(path / name for name in names)
    if gone := [file.name for file in files if not file.is_file()]:
        raise DataError(f"{printable(path)} lacks {', '.join(gone[:3])}", expected=json.dumps(names[:3]))
    return Table(path, "Arrow", files, path)
