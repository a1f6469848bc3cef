"""Costs and faults of every sample of a file, from image headers alone: nothing is decoded unless it is asked for."""

import hashlib
import marshal
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlm.core.errors import DataError, only_vlm_errors
from vlm.core.media_root import MediaRoot
from vlm.core.paths import exists
from vlm.core.progress import Report, silent
from vlm.core.reading import check_regular, is_folder
from vlm.core.sample.index import LineIndex
from vlm.core.sample.lines import parse_line
from vlm.core.sample.measure import Rules, SampleMeter
from vlm.core.sample.media import folder_frames, load_image, load_video
from vlm.core.sample.records import Allowed, Examined, Sample, examine, record_id
from vlm.core.text import printable_lines, shown

CHUNK = 500
"""Lines in one task of a worker."""

ERRORS = {
    "json": "the line is not a JSON object in UTF-8",
    "turns": "roles, order or text of the turns are wrong",
    "empty answer": "an answer has no text",
    "keys": "a key that names files is not read",
    "path": "a path that no file can have: a URL, base64, an empty text",
    "clip": "the range of a video is no [start, end]",
    "placeholders": "placeholders and files differ in number",
    "outside": "a path leads out of the folder of the media",
    "missing": "an image or video file is missing",
    "unreadable": "an image or video cannot be read",
    "image cut": "max_length would cut image tokens",
    "no labels": "nothing is left to learn",
    "tiles": "more tiles than a row may hold",
    "other": "a fault without a name of its own; its message begins with the type",
}
"""Faults that make a sample unusable for training."""

WARNINGS = {
    "cut": "max_length cuts the end of an answer",
    "unfinished": "a JPEG or PNG without its end marker: cut short?",
    "rotated": "EXIF says that the picture is stored turned; it is used as it is stored (as published)",
    "transparent": "hidden parts show the color below them, often black (as published)",
    "float": "values that are no bytes are cut to 0 ... 255 (as published)",
    "empty turn": "a turn without text",
    "first turn": "a leading turn that is not the user's is left out (as published)",
    "unanswered": "the last question has no answer",
    "placeholder in text": "<image> or <video> that belongs to no file stays text",
    "marker": "text holds a marker of the template or a special token; it stays text",
    "no id": "the record has no id; messages name its line",
    "same id": "the id of an earlier sample",
    "same content": "turns and files of an earlier sample",
}

COLUMNS = ("line", "placeholders", "files", "tiles", "tokens", "labels", "tokens_kept", "labels_kept")


class CheckedFile(NamedTuple):
    """An annotation file, the folder its media paths start from, and how often an epoch repeats it.

    `max_tiles` replaces that of the image rule; `allow` is what the set may hold on purpose.
    """

    name: str
    file: Path
    root: Path | MediaRoot
    repeat: float = 1.0
    max_tiles: int | None = None
    allow: tuple[Allowed, ...] = ()


class SampleFault(NamedTuple):
    """A fault of a sample. `kind` is one of ERRORS and WARNINGS."""

    source: str
    line: int
    id: str
    kind: str
    message: str


@dataclass
class CheckedLines:
    """Measures and faults of some records of a file. `rows`: int64 [measured samples, COLUMNS and one per stride].

    `numbers`, `ids` and `digests` have one entry for each record; `unread` counts the keys that nothing reads.
    """

    rows: np.ndarray
    numbers: list[int] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    ids: list[str] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    faults: list[SampleFault] = field(default_factory=list)
    opened: int = 0


class CheckedRecord(NamedTuple):
    """What is known of one record; `row` is None where it could not be measured, `faults` are (kind, message)."""

    id: str
    digest: bytes
    row: list[int] | None
    faults: list[tuple[str, str]]
    unread: Sequence[str] = ()


def text_faults(meter: SampleMeter, record: dict[str, Any], found: Examined) -> Iterator[tuple[str, str]]:
    """Yield (kind, message) of a missing id, and of each marker in the texts of a record."""
    if not record_id(record):
        yield "no id", "no `id`"
    turns = record.get("conversations")
    texts = [t.get("value") if isinstance(t, dict) else None for t in turns] if isinstance(turns, list) else []
    if meter.marker_in("\n".join(text for text in texts if isinstance(text, str))):
        for i, text in enumerate(texts):
            if isinstance(text, str) and (marker := meter.marker_in(text)):
                yield "marker", f"turn {i}: {marker}"


def file_faults(meter: SampleMeter, sample: Sample, *, decode: bool) -> Iterator[tuple[str, str]]:
    """Yield (kind, message) of every file that is missing, unreadable, unfinished, or not what it looks like."""
    seen = set()
    for medium in sample.media:
        path = Path(medium["path"])
        if path in seen:
            continue
        seen.add(path)
        try:
            if medium["type"] == "video":
                if decode:
                    load_video(path, meter.segments, medium["clip"])
                elif not exists(path):
                    yield "missing", f"no such file: {shown(path)}"
                elif not is_folder(path):
                    check_regular(path)
                else:
                    folder_frames(path, meter.segments, medium["clip"])
                continue
            header = meter.header(str(path))
            if decode:
                load_image(path)
            elif not header.finished:
                yield "unfinished", shown(path)
            yield from ((kind, f"{shown(path)}{why}") for kind, why in header.notes)
        except DataError as error:
            yield ("unreadable" if exists(path) else "missing"), error.found


def check_line(
    meter: SampleMeter, raw: bytes, source: CheckedFile, where: str, *, decode: bool = False
) -> CheckedRecord:
    """Check one record: whatever its bytes are, the result is its measures or a fault with a name."""
    bare = f"{where}: "
    try:
        record = parse_line(raw, where)
    except DataError as error:
        return CheckedRecord(where, raw, None, [("json", error.found.removeprefix(bare))])
    id, digest, row = where, hashlib.blake2b(raw, digest_size=8).digest(), None
    found, faults = Examined(), list[tuple[str, str]]()
    try:
        with only_vlm_errors(where):
            found = examine(record, root=source.root, where=where, allow=source.allow)
            faults += [fault[:2] for fault in found.faults]
            if isinstance(record, dict):
                id = record_id(record) or where
                content = marshal.dumps([record.get(k) for k in ("conversations", "image", "video", "clip")], 2)
                digest = hashlib.blake2b(content, digest_size=8).digest()
                faults += text_faults(meter, record, found)
            if found.sample is not None:
                faults += file_faults(meter, found.sample, decode=decode)
                if not any(kind in ERRORS for kind, _ in faults):
                    measured = meter.measure(found.sample)
                    row = [found.placeholders, len(found.files), *measured]
                    faults += limit_faults(meter.rules, measured)
    except DataError as error:
        cut = "truncation would cut image tokens" in error.found
        faults.append(("image cut" if cut else "other", error.found.removeprefix(bare)))
    return CheckedRecord(id, digest, row, [(kind, printable_lines(message)) for kind, message in faults], found.unread)


def limit_faults(rules: Rules, measured: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Yield (kind, message) of each way in which the limits of a recipe cut or refuse a sample."""
    tiles, tokens, labels, kept, labels_kept = measured[:5]
    if kept < tokens:
        yield "cut", f"{tokens} tokens, {tokens - kept} too many; {labels_kept} of {labels} labels stay"
    if labels_kept == 0:
        yield "no labels", f"{labels} labels, {labels_kept} of them in {kept} tokens"
    if rules.max_tiles is not None and tiles > rules.max_tiles:
        yield "tiles", f"{tiles} tiles, a row may hold {rules.max_tiles}"


def check_lines(meter: SampleMeter, source: CheckedFile, first: int, last: int, *, decode: bool) -> CheckedLines:
    """Check records `first` to `last` (from 0, exclusive) of a file."""
    index, rows = LineIndex(source.file), []
    found, before = CheckedLines(np.empty(0)), meter.header.cache_info().misses
    for i in range(first, last):
        line = index.line(i)
        one = check_line(meter, index[i], source, f"{source.file.name}:{line}", decode=decode)
        found.numbers.append(line)
        found.ids.append(one.id)
        found.digests.append(one.digest)
        found.unread.update(set(one.unread))
        found.faults += [SampleFault(source.name, line, one.id, kind, message) for kind, message in one.faults]
        if one.row is not None:
            rows.append([line, *one.row])
    width = len(COLUMNS) + len(meter.rules.strides)
    found.rows = np.array(rows, np.int64).reshape(-1, width)
    found.opened = meter.header.cache_info().misses - before
    return found


@cache
def _meter(rules: Rules) -> SampleMeter:
    return SampleMeter(rules)


def _in_worker(rules: Rules, source: CheckedFile, first: int, last: int, decode: bool) -> CheckedLines:
    return check_lines(_meter(rules), source, first, last, decode=decode)


def check(
    rules: Rules,
    sources: Sequence[CheckedFile],
    workers: int = 1,
    *,
    decode: bool = False,
    report: Report = silent,
) -> Iterator[tuple[CheckedFile, CheckedLines]]:
    """Yield measures and faults, chunk by chunk and in order; the result does not depend on the number of workers.

    Args:
        rules: Tokenizer, template, image rule and limits.
        sources: The files to check.
        workers: Processes.
        decode: Decode every picture and video, as training does: that shows damage behind a good header.
        report: Called with the records that are checked, and all.
    """
    tasks = [
        (limited, source, first, min(first + CHUNK, n), decode)
        for source in sources
        for limited, n in [(rules.limited(source.max_tiles), len(LineIndex(source.file)))]
        for first in range(0, n, CHUNK)
    ]
    done, total = 0, sum(last - first for _, _, first, last, _ in tasks)
    for task, found in zip(tasks, _checked(tasks, workers), strict=True):
        done += task[3] - task[2]
        report(done, total)
        yield task[1], found


def _checked(tasks: list[tuple[Rules, CheckedFile, int, int, bool]], workers: int) -> Iterator[CheckedLines]:
    """Yield what each task finds, in their order."""
    if workers <= 1 or len(tasks) == 1:
        _meter.cache_clear()  # what is known of files holds for one check
        for task in tasks:
            yield _in_worker(*task)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(_in_worker, *zip(*tasks, strict=True))
