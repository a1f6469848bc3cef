"""Published annotation as JSONL: every record checked with its files; unusable ones go to the ledger."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError, MediaError, only_vlm_errors
from vlm.core.fetch.step_schema import Records
from vlm.core.home import dataset, new_file
from vlm.core.ledger import Count, DroppedRecord, SetAccount
from vlm.core.media_root import MediaRoot
from vlm.core.paths import exists, is_inside
from vlm.core.progress import Report, silent
from vlm.core.sample.lines import BLANK, parse_line
from vlm.core.sample.measure import header
from vlm.core.sample.media import load_image, load_video
from vlm.core.sample.records import Allowed, Medium, read_record

BLOCK = 1024
"""Records checked at a time."""

LONGEST = 1 << 26
"""Most characters of an element of a JSON list: of a malformed list the rest is not read into memory."""

ALLOWED: tuple[Allowed, ...] = ("quoted-placeholders", "empty-answers")
"""What is left to the recipe that trains on the set."""

Checked = tuple[dict[str, Any] | None, DroppedRecord | None, bool]
"""(the record to write, what is wrong with it, whether a path was corrected)"""


def convert_records(rule: Records, folder: Path, *, verify: bool, report: Report = silent) -> SetAccount:
    """Run a `Records` step.

    Args:
        rule: The step.
        folder: Folder of the set.
        verify: Decode every picture and video; otherwise headers and ends of files are read.
        report: Called with the records so far; how many there are is not known.

    Raises:
        DataError: A JSON list breaks off: from there on its records cannot be told apart.
    """
    source = (dataset() if rule.beside else folder) / rule.source
    if not source.is_file():
        return SetAccount(missing=[f"{rule.to} (from dataset/{rule.source})" if rule.beside else rule.source])
    target = folder / rule.to if rule.to else None
    losses: list[DroppedRecord] = []
    seen = renamed = 0
    rows = iter_json_list(source) if source.suffix == ".json" else iter_lines(source)
    output = new_file(target, held=True, flush=False) if target else nullcontext(Path(os.devnull))
    with output as temporary, temporary.open("w", encoding="utf-8") as f, ThreadPoolExecutor(os.cpu_count()) as pool:
        while block := list(islice(rows, BLOCK)):
            checks = pool.map(lambda row: _check(row, rule, folder, verify), block)
            for record, loss, corrected in checks:
                seen += 1
                if loss:
                    losses.append(loss)
                else:
                    renamed += corrected
                    f.write(json.dumps(record, ensure_ascii=False) + "\n")
                report(seen, None)
    count = Count(seen, seen - len(losses), len(losses), renamed)
    if target is None:
        return SetAccount(losses=losses, counts={rule.source: count})
    name = str(rule.to)
    return SetAccount(files={name: target.stat().st_size}, losses=losses, counts={name: count})


def iter_json_list(path: Path, *, chunk: int = 1 << 20) -> Iterator[tuple[str, Any]]:
    """Yield (`file:number` from 1, element) of a file that holds one JSON list, without reading it whole.

    Raises:
        DataError: The file is not a list, or breaks off; the message names the character.
    """
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8") as f:
        text, at, number, read = f.read(chunk).lstrip("\ufeff"), 0, 0, 0

        def bad(what: str) -> DataError:
            return DataError(f"{path}: {what} at character {read + at}", expected="one JSON list", fix="fetch it again")

        while True:
            at = _skip(text, at)
            if at < len(text):
                if number == 0 and text[at] != "[":
                    raise bad("not a list")
                if text[at] == "]":
                    break
                start = _skip(text, at + 1)  # at `at` is the bracket, or a comma
                if number == 0 and text[start : start + 1] == "]":
                    break
                try:
                    value, end = decoder.raw_decode(text, start)
                except json.JSONDecodeError:
                    end = len(text)
                end = _skip(text, end)
                if end < len(text) and text[end] in ",]":  # else the element may continue in the unread part
                    number, at = number + 1, end
                    yield f"{path.name}:{number}", value
                    continue
            more = f.read(max(chunk, len(text) - at)) if len(text) - at < LONGEST else ""
            if not more:
                raise bad("it breaks off or is malformed")
            read, text, at = read + at, text[at:] + more, 0


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def iter_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (`file:line`, object) of JSONL; a line that is not JSON gives the error instead."""
    with path.open("rb") as f:
        for number, line in enumerate(f, 1):
            if line.strip(BLANK):
                try:
                    yield f"{path.name}:{number}", parse_line(line, f"{path.name}:{number}")
                except DataError as error:
                    yield f"{path.name}:{number}", error


def _check(row: tuple[str, Any], rule: Records, folder: Path, verify: bool) -> Checked:
    where = row[0]
    try:
        with only_vlm_errors(where):
            return _checked(row, rule, folder, verify)
    except DataError as error:
        return None, DroppedRecord(where, "read", error.found.removeprefix(f"{where}: ")), False


def _checked(row: tuple[str, Any], rule: Records, folder: Path, verify: bool) -> Checked:
    where, record = row
    root = folder / rule.images
    if isinstance(record, DataError):
        raise record
    corrected = False
    if isinstance(record, dict):
        record = {"id": where.replace(":", "-"), **record}
        if rule.jpg and record.get("image"):
            before = record["image"]
            record["image"] = [_twin(root, n) for n in before] if isinstance(before, list) else _twin(root, before)
            corrected = record["image"] != before
    # links are kept as they are: whoever made them may read where they lead
    media = read_record(record, root=MediaRoot(root, (Path("/"),)), where=where, allow=ALLOWED).media
    for medium in media:
        name = os.path.relpath(medium["path"], root)
        try:
            if not is_inside(name):
                raise MediaError(f"{name} leaves the folder of the pictures")
            _look(medium, verify)
        except MediaError as error:
            return None, DroppedRecord(where, "media", error.found.replace(f"{root}/", "")), False
    return record, None, corrected


def _twin(root: Path, name: Any) -> Any:
    """Return the `.jpg` twin of `name` when there is one, else `name`."""
    if not isinstance(name, str) or name.endswith(".jpg"):
        return name
    twin = str(Path(name).with_suffix(".jpg"))
    return twin if exists(root / twin) else name


def _look(medium: Medium, verify: bool) -> None:
    """Raise MediaError when a file does not exist or cannot be read."""
    path = medium["path"]
    if medium["type"] == "video":
        if verify:
            load_video(path, 1, medium["clip"])
        elif not exists(path):
            raise MediaError(f"no such file: {path}")
    elif verify:
        load_image(path)
    elif not header(path).finished:
        raise MediaError(f"{path} is cut short: it has no end marker")
