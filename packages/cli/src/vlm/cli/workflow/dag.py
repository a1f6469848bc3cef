"""What the Snakefile asks the catalogue and the benchmark tables, without torch: which file says that something is
there, what it is made of, and which table an evaluation depends on. Used by workflows/rules and by `vlm reproduce`.

    ready("V2PE-Data")                    # dataset/V2PE-Data/.vlm-organised-V2PE-Data.json
    ready("InternVL2-2B")                 # pretrained/InternVL2-2B/.vlm-manifest.json
"""

import re
from functools import cache
from typing import NamedTuple

from vlm.core.fetch.catalogue import Entry, find_entry, load_catalogue
from vlm.core.fetch.installed import is_built, organized_name
from vlm.core.fetch.manifest import MANIFEST
from vlm.core.home import home
from vlm.eval.benchmark import load_benchmark, tables

BY_HAND = ".vlm-by-hand-"
"""Start of the name of an empty file: a person has placed what the entry named after it consists of."""


NAME = re.compile(r"^name: *(\S+)", re.MULTILINE)


class Table(NamedTuple):
    """The YAML file of a benchmark, its `name` there (without the variant), and its folder below `dataset/`."""

    file: str
    name: str
    folder: str


@cache
def table_of(bench: str) -> Table:
    """The table of a benchmark by name, in any case. Raises UnknownName with the nearest."""
    table = load_benchmark(bench, home())
    path = {name.lower(): path for name, (path, _) in tables(home()).items()}[bench.lower()]
    (name,) = NAME.findall(path.read_text(encoding="utf-8"))  # parsing every table twice takes a second
    return Table(str(path), name, table.folder)


@cache
def catalogue() -> dict[str, Entry]:
    """Name -> entry; read once."""
    return load_catalogue()


@cache
def entry(name: str) -> Entry:
    """The entry of a name. Raises UnknownName with the nearest."""
    return find_entry(name, catalogue())


def ready(name: str) -> str:
    """The file whose existence says that an entry is there: organized, else downloaded, else placed by hand."""
    about = entry(name)
    if about.organize:
        return f"{about.folder}/{organized_name(about)}"
    return (
        f"{about.folder}/{MANIFEST}" if about.automatic or is_built(about) else f"{about.folder}/{BY_HAND}{about.name}"
    )


def needs(name: str) -> list[str]:
    """What must be there before `vlm data organize` of an entry: its own files, and the entries it is made of.

    Entries of one folder are organized one after the other: the folder is locked meanwhile.
    """
    about = entry(name)
    own = [f"{about.folder}/{MANIFEST}"] if about.automatic else []
    hand = [f"{about.folder}/{BY_HAND}{about.name}"] if not (about.automatic or is_built(about)) else []
    beside = [e.name for e in catalogue().values() if e.folder == about.folder and e.organize]
    before = beside[: beside.index(about.name)] if about.name in beside else []
    return list(dict.fromkeys([*own, *hand, *map(ready, about.needs), *map(ready, before[-1:])]))


def downloads_of(folder: str) -> str:
    """The names for `vlm download` that fill a folder such as `dataset/easy-vqa`. A folder that the catalogue does not
    know gives its own name: `vlm download` then says which names there are."""
    found = [e.name for e in catalogue().values() if e.folder == folder and e.automatic]
    return " ".join(found) or folder.split("/")[-1]


@cache
def benchmark_data(bench: str) -> str:
    """The file that says that the data of a benchmark are there; the manifest of its folder when no entry serves it."""
    table = table_of(bench)
    serving = [e.name for e in catalogue().values() if table.name in e.benchmarks or bench in e.benchmarks]
    return ready(serving[0]) if serving else f"dataset/{table.folder}/{MANIFEST}"
