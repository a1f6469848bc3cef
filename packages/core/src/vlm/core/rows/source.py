"""What a person names as data: a file, a folder, a data set of the hub, each with a split behind a colon."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vlm.core.errors import DataError
from vlm.core.fetch.catalogue import Entry, hub_entry
from vlm.core.fetch.fetch import fetch
from vlm.core.fetch.manifest import read_manifest
from vlm.core.home import lookup, resolve
from vlm.core.paths import as_name, exists
from vlm.core.progress import Report, silent
from vlm.core.rows.table import EXPECTED, KINDS, Table, open_table
from vlm.core.text import printable

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class DataSource(NamedTuple):
    """A table, a short name for it, and in words where it is from."""

    table: Table
    name: str
    said: str


def find_source(name: str, *, report: Report = silent, say: Callable[[str], None] = lambda _: None) -> DataSource:
    """Return the table of a file or folder, or of a data set of the hub, which is fetched at a commit.

    Args:
        name: `FILE`, `FOLDER` or `OWNER/NAME`; `:SPLIT` behind it chooses a part.
        report: Called with the bytes fetched and in total.
        say: Called with the commit that was chosen, in words.

    Raises:
        DataError: Nothing of this name, or of no format that is read.
        FetchError: The hub has none, or cannot be reached.

    >>> find_source("pets.csv").table.format        # doctest: +SKIP
    'CSV'
    """
    place, part = name, None
    if not any(map(exists, _places(name))) and ":" in name:
        place, _, part = name.rpartition(":")
    path = next(filter(exists, _places(place)), None)
    if path is not None:
        return DataSource(open_table(path, part), as_name(path.stem or "data"), str(path))
    if not HUB_ID.fullmatch(place) or place.lower().endswith((*KINDS, ".txt")):
        raise DataError(
            f"no such file or folder: {printable(lookup(place))}", expected=f"{EXPECTED}, or OWNER/NAME of the hub"
        )
    entry = hub_entry(place, "data")
    fetch(entry, report=report, say=say)
    table = open_table(entry.path, part)
    return DataSource(table, as_name(place.rpartition("/")[2]), f"{place}@{commit_of(entry)}")


def _places(name: str) -> tuple[Path, Path]:
    """Return where a file of this name may be: in the working directory, or below the home."""
    return Path(name).expanduser().absolute(), resolve(name)


def commit_of(entry: Entry) -> str:
    """Return the commit that a data set of the hub was fetched at; "" where nothing says so."""
    manifest = read_manifest(entry.path)
    sources = manifest["source"] if manifest and isinstance(manifest["source"], list) else []
    return next((str(one["revision"]) for one in sources if isinstance(one, dict) and one.get("revision")), "")
