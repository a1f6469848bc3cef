"""Data of one's own as an entry of a recipe: used where it lies, or imported once into dataset/own/.

entry = own_entry(find_source("pets.csv"), ImportOptions())
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, get_args

from vlm.core.errors import DataError
from vlm.core.home import dataset, home, read_json
from vlm.core.paths import as_name
from vlm.core.rows.source import DataSource
from vlm.core.rows.table import Table
from vlm.core.rows.text import encoding_of
from vlm.core.rows.write import MANIFEST, RECORDS, ImportOptions, first_records, stamp_of, write_normal
from vlm.core.sample.index import LineIndex
from vlm.core.sample.records import KNOWN, ROLES, Allowed
from vlm.core.text import printable
from vlm.train.recipe.sections import DataEntry

LOOKED_AT = 100
"""Rows that are read to tell the form of a set, and by a dry run."""


MAX_LOST = 0.01
"""Share of the records that a run on own data may lose."""


class OwnSet(NamedTuple):
    """Data of one's own: its entry in a recipe, how many records it has, its content as a stamp, and what it is."""

    entry: DataEntry
    records: int
    stamp: str
    said: str


def own_set(source: DataSource, options: ImportOptions, *, name: str, write: bool = True) -> OwnSet:
    """Return data as an entry of a recipe; data in another form is imported first.

    Args:
        source: The data.
        options: How its rows become records.
        name: Of the entry.
        write: Import it; without, the entry names where it will be.

    Raises:
        DataError: Too many of its rows cannot be used.
    """
    table, stamp = source.table, stamp_of(source.table)
    if is_plain(table, options):
        file, root = table.files[0], options.root or table.root
        records = len(LineIndex(file))
        allow = allowed_in(table)
        entry = DataEntry.model_validate({"name": name, "file": _place(file), "root": _place(root), "allow": allow})
        return OwnSet(entry, records, stamp, f"{source.said}: {records:,} records, used where they are")
    digest = hashlib.sha256(f"{stamp} {options}".encode()).hexdigest()[:8]
    folder = dataset() / "own" / as_name(f"{source.name}-{digest}")
    entry = DataEntry(name=name, file=_place(folder / RECORDS), root=_place(folder))
    if not write:
        records = table.count()
        return OwnSet(entry.model_copy(update={"count": records}), records, stamp, f"{source.said}: {table.said}")
    done = write_normal(table, folder, options, source=source.said)
    forms = ", ".join(done["forms"])
    said = f"{source.said}: {table.said}; {forms}; {done['written']:,} of {done['read']:,} rows, in {_place(folder)}"
    return OwnSet(entry, done["written"], stamp, said)


def faults_of_first(source: DataSource, options: ImportOptions) -> list[str]:
    """Return why each of the first rows cannot be used; a set without rows is a fault too."""
    options = replace(options, allow=allowed_in(source.table))
    rows = list(first_records(source.table, options, LOOKED_AT))
    faults = [f"{printable(row.where)}: {printable(why, 300)}" for row, _, _, why in rows if why]
    return faults if rows else [f"{printable(source.said)} holds no row"]


def allowed_in(table: Table) -> tuple[Allowed, ...]:
    """Return what an import of ours was told that its records may hold on purpose; nothing for other tables."""
    manifest = table.files[0].with_name(MANIFEST)
    if table.files[0].name != RECORDS or not manifest.is_file():
        return ()
    said = read_json(manifest)
    request = said.get("request") if isinstance(said, dict) else None
    given = request.get("allow") if isinstance(request, dict) else None
    return tuple(one for one in get_args(Allowed) if isinstance(given, list) and one in given)


def refuse_faults(faults: list[str]) -> None:
    """Raise one DataError for all faults; do nothing where there are none."""
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise DataError(
            f"{len(faults)} of the first rows cannot be used:\n{lines}",
            expected="a question, an answer, and as many files as placeholders",
            fix="repair or remove these rows",
        )


def refuse_many(faults: list[str], records: int) -> None:
    """Raise DataError where the first rows alone hold more faults than a run may lose; do nothing below."""
    if len(faults) > MAX_LOST * records:
        refuse_faults(faults)


def is_plain(table: Table, options: ImportOptions) -> bool:
    """Return whether a file is JSON lines in the normal form, which training reads where it lies."""
    if table.format != "JSON lines" or len(table.files) > 1:
        return False
    with table.files[0].open("rb") as file:
        if encoding_of(file.read(4096))[0] != "utf-8":
            return False
    rows = [row for _, row in zip(range(LOOKED_AT), table.rows(), strict=False)]
    for row in rows:
        turns = row.value.get("conversations")
        files = [row.value.get(key) for key in ("image", "video")]
        names = [name for value in files for name in (value if isinstance(value, list) else [value])]
        if row.fault or not isinstance(turns, list) or row.value.keys() - KNOWN & {"images", "videos"}:
            return False
        if any(not isinstance(turn, dict) or turn.get("from") not in ROLES for turn in turns):
            return False
        if any(
            not isinstance(name, str | None) or (name and name[:5] in ("data:", "http:", "https")) for name in names
        ):
            return False
    return bool(rows)


def _place(path: Path) -> str:
    """Return a path as a recipe says it: below the home without it."""
    path = path.absolute()
    return path.relative_to(home()).as_posix() if path.is_relative_to(home()) else str(path)
