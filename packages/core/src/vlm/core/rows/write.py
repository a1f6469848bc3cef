"""A table in the normal form: records.jsonl, images/, ledger.jsonl and, last, manifest.json.

done = write_normal(open_table(Path("pets.csv")), Path("dataset/pets"))
print(done["read"], done["written"], done["refused"])
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from vlm.core.errors import ConfigError, DataError
from vlm.core.home import locked, read_json, write_json
from vlm.core.ledger import DroppedRecord
from vlm.core.media_root import MediaRoot
from vlm.core.rows.forms import Normal, Unfit, normal
from vlm.core.rows.media import MediaStore, Medium
from vlm.core.rows.table import Table
from vlm.core.rows.text import Row
from vlm.core.sample.records import Allowed, examine, record_id
from vlm.core.text import printable

SAVED = 200
"""Rows between two notes of how far an import is; after a kill, at most so many are made again."""
MANIFEST, RECORDS, LEDGER = "manifest.json", "records.jsonl", "ledger.jsonl"
SHOWN = 10
KINDS: tuple[Medium, ...] = ("image", "video")


@dataclass(frozen=True)
class ImportOptions:
    """How rows become records.

    Attributes:
        question: What is asked in a row with columns but without a question.
        urls: Fetch addresses of pictures.
        outside: Folders outside of the table's that rows may name.
        root: Folder that paths in the rows start from; by default the table's.
        allow: What the records may hold on purpose.
        max_lost: Share of the rows that may be refused.
    """

    question: str | None = None
    urls: bool = False
    outside: tuple[Path, ...] = ()
    root: Path | None = None
    allow: tuple[Allowed, ...] = ()
    max_lost: float = 0.01

    def store(self, table: Table, out: Path) -> MediaStore:
        """Return what reads the media of a table."""
        return MediaStore(out, MediaRoot(self.root or table.root, self.outside), self.urls)


class SettledRow(NamedTuple):
    """A row in the normal form, examined; its `image` and `video` are still lists of what the row holds."""

    form: str
    record: dict[str, Any]
    unread: list[str]


def settled(row: Row, options: ImportOptions) -> SettledRow:
    """Return a row as a record that can be used, its media unread. Raises Unfit with every reason."""
    if row.fault:
        raise Unfit("unreadable", row.fault)
    found: Normal = normal(row.value, options.question)
    # what stands for a file is examined by whoever reads it; here its number counts
    names: dict[str, list[str]] = {key: [f"{key}-{i}" for i in range(len(found.record.get(key, ())))] for key in KINDS}
    named = {**found.record, **{key: files for key, files in names.items() if files}}
    examined = examine(named, root=Path(), allow=options.allow)
    if examined.fatal:
        raise Unfit(examined.fatal[0].kind, "; ".join(fault.message for fault in examined.fatal))
    if not any(turn["from"] == "gpt" and turn.get("loss") != 0 for turn in found.record["conversations"]):
        raise Unfit("no answer", "no answer to learn")
    return SettledRow(found.form, found.record, [*found.unread, *examined.unread])


def placed(row: SettledRow, store: MediaStore) -> dict[str, Any]:
    """Return the record with its media in the folder of `store`. Raises Unfit for one that cannot be read."""
    record = dict(row.record)
    for key in KINDS:
        if key in record:
            names = [store.place(value, key) for value in record[key]]
            record[key] = names[0] if len(names) == 1 else names
    return record


class _State(dict[str, Any]):
    """How far an import is, as it is noted on the disk."""

    @classmethod
    def new(cls, request: dict[str, Any]) -> "_State":
        return cls(request=request, read=0, written=0, refused={}, forms={}, unread={}, bytes={RECORDS: 0, LEDGER: 0})

    def add(self, what: str, key: str) -> None:
        self[what][key] = self[what].get(key, 0) + 1


def stamp_of(table: Table) -> str:
    """Return what changes with the files of a table: their names, sizes and times."""
    facts = [(str(f.relative_to(table.path.parent)), f.stat().st_size, f.stat().st_mtime_ns) for f in table.files]
    return hashlib.sha256(json.dumps([str(table.path.resolve()), table.split, facts]).encode()).hexdigest()[:16]


def write_normal(table: Table, out: Path, options: ImportOptions | None = None, *, source: str = "") -> dict[str, Any]:
    """Write a table in the normal form into a folder; return its manifest. Rerun to continue; a whole one is left.

    Args:
        table: The rows.
        out: Folder, new or of an earlier run of the same import.
        options: How rows become records.
        source: What the manifest says of where the table is from; default its path.

    Raises:
        DataError: No row is left, or more than `max_lost` of them cannot be used. All are listed in ledger.jsonl.
        ConfigError: The folder holds something else.
        LockedError: Another process writes it.
    """
    options = options or ImportOptions()
    asked = {key: value for key, value in asdict(options).items() if key != "max_lost"}
    request = {"stamp": stamp_of(table), **json.loads(json.dumps(asked, default=str))}
    out = Path(out)
    if (out / MANIFEST).exists():
        manifest = read_json(out / MANIFEST)
        if isinstance(manifest, dict) and manifest.get("request") == request:
            return manifest
    parts = out / ".partial"
    begun = (parts / "state.json").exists()
    if out.exists() and not begun and any(not path.name.startswith((".lock", ".partial")) for path in out.iterdir()):
        found = f"{printable(out)} holds something else than this import"
        raise ConfigError(found, expected="a new folder", fix="name another one, or remove it")
    with locked(out, "vlm data import"):
        parts.mkdir(exist_ok=True)
        state = _State.new(request)
        if (parts / "state.json").exists():
            noted = read_json(parts / "state.json")
            if isinstance(noted, dict) and noted.get("request") == request:
                state = _State(noted)
        _write_rows(table, out, parts, state, options)
        lost = state["read"] - state["written"]
        if not state["written"] or lost > options.max_lost * state["read"]:
            raise too_many(table, state, options, parts / LEDGER)
        manifest = {
            "source": source or str(table.path),
            "format": table.said,
            **{key: state[key] for key in ("request", "forms", "read", "written", "refused", "unread")},
            "same_id": same_ids(parts / RECORDS),
        }
        for name in (RECORDS, LEDGER):
            (parts / name).replace(out / name)
        write_json(out / MANIFEST, manifest)
        (parts / "state.json").unlink()
        parts.rmdir()
    return manifest


def same_ids(file: Path) -> int:
    """Return how many records have an id that a record before them has; one without an id has none."""
    seen: set[int] = set()  # hashes: 8 bytes of each id, whatever its length
    count = 0
    with file.open("rb") as lines:
        for line in lines:
            if id := record_id(json.loads(line)):
                count += 1
                seen.add(hash(id))
    return count - len(seen)


def _write_rows(table: Table, out: Path, parts: Path, state: _State, options: ImportOptions) -> None:
    """Write the rows that are not written yet."""
    store, done = options.store(table, out), state["read"]
    files: dict[str, IO[bytes]] = {}
    try:
        for name in (RECORDS, LEDGER):
            files[name] = (parts / name).open("r+b" if (parts / name).exists() else "w+b")
            files[name].truncate(state["bytes"][name])
            files[name].seek(0, os.SEEK_END)
        for number, row in enumerate(table.rows()):
            if number < done:
                continue
            state["read"] += 1
            try:
                good = settled(row, options)
                text = _text(placed(good, store))
            except Unfit as fault:
                state.add("refused", fault.kind)
                files[LEDGER].write(_line(DroppedRecord(row.where, "convert", f"{fault.kind}: {fault}")))
            else:
                state["written"] += 1
                state.add("forms", good.form)
                for key in good.unread:
                    state.add("unread", printable(key, 60))
                files[RECORDS].write(text + b"\n")
            if state["read"] % SAVED == 0:
                _note(files, parts, state)
        _note(files, parts, state)
    finally:
        for file in files.values():
            file.close()


def _text(record: dict[str, Any]) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise Unfit("turns", "half of a surrogate pair (a cut emoji)") from error


def _line(dropped: DroppedRecord) -> bytes:
    return json.dumps(asdict(dropped), ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _note(files: dict[str, IO[bytes]], parts: Path, state: _State) -> None:
    for name, file in files.items():
        file.flush()
        os.fsync(file.fileno())
        state["bytes"][name] = file.tell()
    write_json(parts / "state.json", state)


def too_many(table: Table, state: dict[str, Any], options: ImportOptions, ledger: Path) -> DataError:
    """Return the error for a table of which too many rows cannot be used, with the first of them."""
    with ledger.open("rb") as file:
        first = [json.loads(line) for _, line in zip(range(SHOWN), file, strict=False)]
    lines = [f"  {printable(one['id'])}: {printable(one['reason'], 300)}" for one in first]
    lost = sum(state["refused"].values())
    if lost > SHOWN:
        lines.append(f"  … and {lost - SHOWN:,} more; all are in {ledger}")
    kinds = ", ".join(f"{kind} {n:,}" for kind, n in Counter(state["refused"]).most_common())
    share = math.ceil(100 * lost / max(1, state["read"])) / 100
    more = f"`vlm data import` with a --max-lost of {share:g}"
    if not state["read"]:
        return DataError(f"{printable(table.path)} holds no row", expected="at least one record")
    return DataError(
        f"{lost:,} of {state['read']:,} rows of {printable(table.path)} cannot be used ({kinds}):\n" + "\n".join(lines),
        expected=f"at most {options.max_lost:.0%} of them",
        fix="repair or remove the rows above" + (f", or allow more on purpose: {more}" if state["written"] else ""),
    )


def first_records(
    table: Table, options: ImportOptions, most: int
) -> Iterator[tuple[Row, SettledRow | None, list[tuple[int, int] | None], str | None]]:
    """Yield the first rows with their record, the sizes of their pictures, and why a row cannot be used."""
    store = options.store(table, Path())
    for _, row in zip(range(most), table.rows(), strict=False):
        sizes: list[tuple[int, int] | None] = []
        try:
            good = settled(row, options)
            for key in KINDS:
                sizes += [store.size(value, key) for value in good.record.get(key, ())]
        except Unfit as fault:
            yield row, None, sizes, f"{fault.kind}: {fault}"
        else:
            yield row, good, sizes, None
