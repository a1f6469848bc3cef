"""Costs and faults of every sample of a file, from image headers alone: nothing is decoded."""

import hashlib
import json
import marshal
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlm.core.errors import DataError, MediaError
from vlm.core.media_root import MediaRoot
from vlm.core.sample.index import LineIndex
from vlm.core.sample.measure import Rules, SampleMeter
from vlm.core.sample.media import IMAGE_SUFFIXES
from vlm.core.sample.records import ROLES, read_record

CHUNK = 500
"""Lines in one task of a worker."""

ERRORS = {
    "json": "the line is not a JSON object",
    "turns": "roles, order or text of the turns are wrong",
    "placeholders": "placeholders and files differ in number",
    "outside": "a path leads out of the folder of the media",
    "missing": "an image or video file is missing",
    "unreadable": "the header of an image cannot be read",
    "image cut": "max_length would cut image tokens",
    "no labels": "nothing is left to learn",
    "tiles": "more tiles than a row may hold",
}
"""Faults that make a sample unusable for training."""

WARNINGS = {
    "cut": "max_length cuts the end of an answer",
    "unfinished": "a JPEG or PNG without its end marker: cut short?",
    "empty turn": "a turn without text",
    "first turn": "a leading turn that is not the user's is left out (as published)",
    "placeholder in answer": "<image> or <video> in an answer stays text",
    "marker": "text holds a marker of the template or a special token; it stays text",
    "same id": "the id of an earlier sample",
    "same content": "turns and files of an earlier sample",
}

VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv"}
COLUMNS = ("line", "placeholders", "files", "tiles", "tokens", "labels", "tokens_kept", "labels_kept")


class CheckedFile(NamedTuple):
    """An annotation file, the folder its media paths start from, and how often an epoch repeats it."""

    name: str
    file: Path
    root: Path | MediaRoot
    repeat: float = 1.0


class SampleFault(NamedTuple):
    """A fault of a sample. `kind` is one of ERRORS and WARNINGS."""

    source: str
    line: int
    id: str
    kind: str
    message: str


@dataclass
class CheckedLines:
    """Measures and faults of some lines of a file. `rows`: int64 [measured samples, COLUMNS and one per stride]."""

    rows: np.ndarray
    lines: int = 0
    ids: list[str] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    faults: list[SampleFault] = field(default_factory=list)
    opened: int = 0


def media_files(record: dict[str, Any], root: str) -> list[str]:
    """Return the paths of the files that a record names."""
    images = record.get("image") or []
    names = [images] if isinstance(images, str) else [*images] if isinstance(images, list) else []
    return [os.path.join(root, name) for name in [*names, record.get("video")] if isinstance(name, str) and name]  # noqa: PTH118


def turn_faults(meter: SampleMeter, record: dict[str, Any], files: int) -> tuple[int, list[tuple[str, str]]]:
    """Return the placeholders in the user's turns, and (kind, message) of each fault of the texts."""
    faults: list[tuple[str, str]] = []
    turns, mark = record.get("conversations"), "<video>" if record.get("video") else "<image>"
    marks, texts = 0, []
    for i, turn in enumerate(turns if isinstance(turns, list) else []):
        role, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if str(role) not in ROLES or not isinstance(text, str):
            faults.append(("turns", f"turn {i}: from {role!r} with a value of type {type(text).__name__}"))
            continue
        texts.append((i, text))
        if i == 0 and role == "gpt":
            faults.append(("first turn", "turn 0 is from 'gpt'"))
        if not text or text.isspace():
            faults.append(("empty turn", f"turn {i} ({role})"))
        if role == "human":
            marks += text.count(mark)
        elif "<image>" in text or "<video>" in text:
            faults.append(("placeholder in answer", f"turn {i} ({role})"))
    if meter.marker_in("\n".join(text for _, text in texts)):
        found = ((i, meter.marker_in(text)) for i, text in texts)
        faults += [("marker", f"turn {i}: {marker}") for i, marker in found if marker]
    if marks != files and not (marks == 0 and files == 1):
        faults.append(("placeholders", f"{marks} {mark} placeholders but {files} files"))
    return marks, faults


def file_faults(meter: SampleMeter, files: Sequence[str], root: MediaRoot) -> Iterator[tuple[str, str]]:
    """Yield (kind, message) of every file that is outside, missing, unreadable or unfinished."""
    for file in dict.fromkeys(files):
        try:
            root.locate(file)
        except DataError as error:
            yield "outside", error.found
            continue
        try:
            if not meter.header(file)[1]:
                yield "unfinished", file
        except MediaError as error:
            path, kind = Path(file), "unreadable"
            if error.found.startswith("no such file"):
                kind = "missing"
            elif os.path.isdir(path) and any(p.suffix.lower() in IMAGE_SUFFIXES for p in path.iterdir()):  # noqa: PTH112
                continue  # the frames of a video
            elif os.path.isfile(path) and path.suffix.lower() in VIDEO_SUFFIXES:  # noqa: PTH113
                continue
            yield kind, error.found


def check_line(
    meter: SampleMeter, raw: bytes, root: Path | MediaRoot, where: str
) -> tuple[str, bytes, list[int] | None, list[tuple[str, str]]]:
    """Return id, digest of the content, measures (None without any) and (kind, message) faults of one line."""
    try:
        record = json.loads(raw)
    except ValueError as error:
        return where, raw, None, [("json", str(error))]
    if not isinstance(record, dict):
        return where, raw, None, [("json", f"a {type(record).__name__}, not an object")]
    content = marshal.dumps([record.get(k) for k in ("conversations", "image", "video", "clip")], 2)
    gate = root if isinstance(root, MediaRoot) else MediaRoot(root)
    files = media_files(record, str(gate.folder))
    marks, faults = turn_faults(meter, record, len(files))
    faults += file_faults(meter, files, gate)
    row, id = None, str(record.get("id", where))
    try:
        sample = read_record(record, root=gate, where=where)
        if not any(kind in ("outside", "missing", "unreadable") for kind, _ in faults):
            measured = meter.measure(sample)
            row = [marks, len(files), *measured]
            faults += limit_faults(meter.rules, measured)
    except DataError as error:
        if "truncation would cut image tokens" in error.found:
            faults.append(("image cut", error.found.removeprefix(f"{where}: ")))
        elif not any(kind in ERRORS for kind, _ in faults):
            faults.append(("turns", error.found.removeprefix(f"{where}: ")))
    return id, hashlib.blake2b(content, digest_size=8).digest(), row, faults


def limit_faults(rules: Rules, measured: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Yield (kind, message) of each way in which the limits of a recipe cut or refuse a sample."""
    tiles, tokens, labels, kept, labels_kept = measured[:5]
    if kept < tokens:
        yield "cut", f"{tokens} tokens, {tokens - kept} too many; {labels_kept} of {labels} labels stay"
    if labels_kept == 0:
        yield "no labels", f"{labels} labels, {labels_kept} of them in {kept} tokens"
    if rules.max_tiles is not None and tiles > rules.max_tiles:
        yield "tiles", f"{tiles} tiles, a row may hold {rules.max_tiles}"


def check_lines(meter: SampleMeter, source: CheckedFile, first: int, last: int) -> CheckedLines:
    """Check lines `first` to `last` (from 0, exclusive) of a file."""
    index, rows = LineIndex(source.file), []
    found, before = CheckedLines(np.empty(0), last - first), meter.header.cache_info().misses
    for i in range(first, last):
        id, digest, row, faults = check_line(meter, index[i], source.root, f"{source.file.name}:{i + 1}")
        found.ids.append(id)
        found.digests.append(digest)
        found.faults += [SampleFault(source.name, i + 1, id, kind, message) for kind, message in faults]
        if row is not None:
            rows.append([i + 1, *row])
    width = len(COLUMNS) + len(meter.rules.strides)
    found.rows = np.array(rows, np.int64).reshape(-1, width)
    found.opened = meter.header.cache_info().misses - before
    return found


@cache
def _meter(rules: Rules) -> SampleMeter:
    return SampleMeter(rules)


def _in_worker(rules: Rules, source: CheckedFile, first: int, last: int) -> CheckedLines:
    return check_lines(_meter(rules), source, first, last)


def check(rules: Rules, sources: Sequence[CheckedFile], workers: int = 1) -> Iterator[tuple[CheckedFile, CheckedLines]]:
    """Yield measures and faults, chunk by chunk and in order; the result does not depend on the number of workers.

    Args:
        rules: Tokenizer, template, image rule and limits.
        sources: The files to check.
        workers: Processes.
    """
    tasks = [
        (source, first, min(first + CHUNK, n))
        for source in sources
        for n in [len(LineIndex(source.file))]
        for first in range(0, n, CHUNK)
    ]
    if workers <= 1 or len(tasks) == 1:
        meter = SampleMeter(rules)
        for task in tasks:
            yield task[0], check_lines(meter, *task)
        return
    with ProcessPoolExecutor(workers) as pool:
        for task, found in zip(
            tasks, pool.map(_in_worker, [rules] * len(tasks), *zip(*tasks, strict=True)), strict=True
        ):
            yield task[0], found
