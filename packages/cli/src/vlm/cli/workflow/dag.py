"""The catalogue and the benchmark tables as files of the DAG, without torch; for workflows/rules and `vlm reproduce`.

It says which file marks that something is there, what that is made of, and which table an evaluation depends on.

>>> ready("V2PE-Data"), ready("InternVL2-2B")
('dataset/V2PE-Data/.vlm-organised-V2PE-Data.json', 'pretrained/InternVL2-2B/.vlm-manifest.json')
"""

import re
from functools import cache
from typing import NamedTuple

from vlm.core.errors import UnknownName
from vlm.core.fetch.catalogue import Entry, find_entry, load_catalogue, weights_names
from vlm.core.fetch.installed import is_built, organized_name
from vlm.core.fetch.manifest import MANIFEST
from vlm.core.home import home
from vlm.eval.benchmark import load_benchmark, tables

BY_HAND = ".vlm-by-hand-"
"""Prefix of an empty file's name: a person has placed the files of the entry that it names."""


NAME = re.compile(r"^name: *(\S+)", re.MULTILINE)


class TableFile(NamedTuple):
    """The YAML file of a benchmark, its `name` there (without the variant), and its folder below `dataset/`.

    `own`: a person's own file with its questions; None for others.
    """

    file: str
    name: str
    folder: str
    own: str | None = None


@cache
def table_of(bench: str) -> TableFile:
    """Find the table of a benchmark by name, in any case. Raises UnknownName with the nearest."""
    table = load_benchmark(bench, home())
    path = {name.lower(): path for name, (path, _) in tables(home()).items()}[bench.lower()]
    if table.file:
        return TableFile(str(path), table.name, table.folder, table.file)
    (name,) = NAME.findall(path.read_text(encoding="utf-8"))  # parsing every table twice takes a second
    return TableFile(str(path), name, table.folder)


@cache
def catalogue() -> dict[str, Entry]:
    """Load the catalogue, once: name -> entry."""
    return load_catalogue()


@cache
def entry(name: str) -> Entry:
    """Find an entry by name. Raises UnknownName with the nearest."""
    return find_entry(name, catalogue())


def ready(name: str) -> str:
    """Return the file whose existence means that an entry is there: organized, else downloaded, else placed by hand."""
    about = entry(name)
    if about.organize:
        return f"{about.folder}/{organized_name(about)}"
    return (
        f"{about.folder}/{MANIFEST}" if about.automatic or is_built(about) else f"{about.folder}/{BY_HAND}{about.name}"
    )


def needs(name: str) -> list[str]:
    """List the files that `vlm data organize` of an entry needs: its own, and those of the entries it is made of.

    Entries of one folder are organized one after the other: the folder is locked meanwhile.
    """
    about = entry(name)
    own = [f"{about.folder}/{MANIFEST}"] if about.automatic else []
    hand = [f"{about.folder}/{BY_HAND}{about.name}"] if not (about.automatic or is_built(about)) else []
    beside = [e.name for e in catalogue().values() if e.folder == about.folder and e.organize]
    before = beside[: beside.index(about.name)] if about.name in beside else []
    return list(dict.fromkeys([*own, *hand, *map(ready, about.needs), *map(ready, before[-1:])]))


def checkpoint_marker(folder: str) -> str:
    """Return the file whose existence means that a released checkpoint is there: that of the entry that brings it.

    A folder that no entry names is that of a repository of the hub (`pretrained/ada/cats`).

    >>> checkpoint_marker("pretrained/V2PE/V2PE-32K")
    'pretrained/V2PE/.vlm-manifest.json'

    Raises:
        UnknownName: No entry brings it, and it is no repository; names the nearest.
    """
    places = {place: e.folder for e in catalogue().values() for place in weights_names(e)}
    if folder in places:
        return f"{places[folder]}/{MANIFEST}"
    if folder.count("/") < 2 or any(folder.startswith(f"{known}/") for known in places.values()):
        raise UnknownName("released checkpoint", folder, places, fix="`vlm list weights` shows them")
    return f"{folder}/{MANIFEST}"


def downloads_of(folder: str) -> str:
    """Return the names for `vlm download` that fill a folder such as `dataset/easy-vqa`.

    For a folder that the catalogue does not know it is a repository of the hub (`pretrained/ada/cats`), or the last
    part: `vlm download` then lists the known ones.
    """
    found = [e.name for e in catalogue().values() if e.folder == folder and e.automatic]
    first, *rest = folder.split("/")
    return " ".join(found) or ("/".join(rest) if first == "pretrained" else rest[-1])


@cache
def benchmark_data(bench: str) -> str:
    """Return the file whose existence means that a benchmark's data are there: of its entry, else of its folder."""
    table = table_of(bench)
    if table.own:
        return table.own
    serving = [e.name for e in catalogue().values() if table.name in e.benchmarks or bench in e.benchmarks]
    return ready(serving[0]) if serving else f"dataset/{table.folder}/{MANIFEST}"
