"""Take a published folder tree as it lies: found, verified, and linked below `dataset/`; nothing in it is changed.

    found = find_published(Path("/data/v2pe"), load_catalogue())       # entries, and what of each is there
    plans = [verify(one, tree, folder) for one in found]               # faults, in words; nothing is written
    adopt(plans)                                                       # links and manifests below the home

A published README puts the same folders elsewhere than we do: `Entry.published` says where. The manifests are those of
a download and of organizing, so that all other commands take an adopted set as any other.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError
from vlm.core.fetch.catalogue import Entry, HubSource, UrlSource
from vlm.core.fetch.installed import adopted_from, ledger_name, organized_name
from vlm.core.fetch.manifest import MANIFEST, TreeManifest, count_records, sha256_of
from vlm.core.fetch.miniature import is_marked
from vlm.core.home import dataset, home, locked, write_json
from vlm.core.ledger import write_ledger
from vlm.core.organize.pictures import PictureCheck, check_pictures
from vlm.core.organize.tree import is_in_tree
from vlm.core.paths import is_control
from vlm.core.progress import Report, silent

Look = Callable[[Entry, Path], list[str]]
"""function(entry, folder as it will be) -> what the benchmarks that read it miss, in words."""


@dataclass(frozen=True)
class Published:
    """What of an entry lies in a published tree: path below the entry's folder ("" for the folder) -> where it is."""

    entry: Entry
    parts: dict[str, Path]
    absent: tuple[str, ...]

    @property
    def source(self) -> str:
        """The first folder, for people."""
        return str(next(iter(self.parts.values())))

    @property
    def in_place(self) -> bool:
        """Whether it lies where we keep it: then nothing is linked."""
        return self.parts.get("") is not None and self.parts[""].resolve() == self.entry.path.resolve()

    def links(self) -> dict[str, Path]:
        """Return the links to make: name below the entry's folder -> target."""
        found: dict[str, Path] = {}
        for target, place in self.parts.items():
            if target:
                found[target] = place
            elif not self.in_place:
                found |= {p.name: p for p in sorted(place.iterdir()) if not is_control(p.name) and p.name[0] != "."}
        return found


@dataclass
class Adoption:
    """One entry to adopt: its links, what a look at it found, and what stands against it."""

    published: Published
    links: dict[str, Path]
    files: dict[str, int] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    pictures: PictureCheck = field(default_factory=lambda: PictureCheck({}, [], []))
    faults: list[str] = field(default_factory=list)


def places_of(entry: Entry) -> dict[str, str]:
    """Return the paths of an entry in the published trees -> below its folder: `data/NAME` for a benchmark."""
    if entry.published or entry.kind != "benchmark" or not entry.automatic:
        return entry.published
    return {f"data/{Path(entry.folder).name}": ""}


def find_published(tree: Path, catalogue: dict[str, Entry], names: set[str] | None = None) -> list[Published]:
    """Return the entries of which something lies in a tree, in the order of the catalogue.

    The tree may be the folder that holds `dataset/` and `data/`, one of these, or a single benchmark's folder, whose
    name then says which it is. A leading folder may have another name, if what an entry consists of is in it.

    Args:
        tree: Any folder.
        catalogue: The entries.
        names: Only these. The tree may then be the folder of a single one, whatever it is called.
    """
    found = []
    for entry in catalogue.values():
        if names is not None and entry.name not in names:
            continue
        places = places_of(entry)
        parts: dict[str, Path] = {}
        for place, target in places.items():
            if target not in parts and (where := _locate(tree, place, target, entry, alone=names == {entry.name})):
                parts[target] = where
        if parts and ("" in parts or "" not in places.values()):
            absent = tuple(p for p, target in places.items() if target not in parts)
            found.append(Published(entry, parts, absent))
    return found


def _locate(tree: Path, place: str, target: str, entry: Entry, *, alone: bool) -> Path | None:
    """Return where a published path is in a tree: whole, or without the leading folders that the tree itself is."""
    names, own = place.split("/"), tree.resolve().parts
    for cut in range(len(names) + 1):
        where = tree.joinpath(*names[cut:])
        if not where.exists():
            continue
        named = list(own[len(own) - cut :]) == names[:cut]
        whole = target == "" and (alone or own[-1:] == (names[-1],))
        if cut == 0 or named or ((cut < len(names) or whole) and _holds(entry, target, where)) or (alone and whole):
            return where
    return None


def _holds(entry: Entry, target: str, where: Path) -> bool:
    return bool(_expected_in(entry, target, where))


def _expected_in(entry: Entry, target: str, where: Path) -> list[str]:
    """Return the paths that an entry consists of, that belong below `target`, and that are in a folder."""
    wanted = [*entry.records, *entry.tree, *entry.pictures]
    below = [p.removeprefix(f"{target}/" if target else "") for p in wanted if p.startswith(f"{target}/") or not target]
    return [path for path in below if is_in_tree(where, path)]


def verify(
    one: Published,
    tree: Path,
    folder: Path,
    catalogue: dict[str, Entry],
    *,
    look: Look = lambda entry, folder: [],
    max_lost: float = 0.01,
    checksums: bool = False,
    report: Report = silent,
) -> Adoption:
    """Compare a published folder with the catalogue: names, counts, sizes, pictures by number or by their records.

    Args:
        one: What was found.
        tree: The tree, where pictures that a set shares with others are looked for.
        folder: An empty folder apart from both, in which the entry is laid out by links.
        catalogue: All entries, to name what a wrong folder is.
        look: What the benchmarks say that read the entry.
        max_lost: Largest share of records of a folder that may name a missing picture.
        checksums: Compare the checksums that are known, not only the sizes.
        report: Called with the records so far.
    """
    entry = one.entry
    plan = Adoption(one, one.links())
    if any(is_marked(place) for place in one.parts.values()):
        plan.faults.append("it holds a generated miniature")
        return plan
    for step in entry.organize:
        if step.link and step.link.to.split("/")[0] not in plan.links and not (entry.path / step.link.to).exists():
            near = next(
                (p for cut in (0, 1) if (p := tree.joinpath(*f"data/{step.link.source}".split("/")[cut:])).exists()),
                None,
            )
            plan.links[step.link.to] = near or dataset() / step.link.source
    laid_out = {p.name: p for p in one.parts[""].iterdir()} if one.in_place else {}
    for name, target in (laid_out | plan.links).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target.resolve())
    plan.faults += _missing(entry, one, folder)
    if len(plan.faults) == 1 and plan.faults[0].startswith("none of"):
        plan.faults += _other(one, catalogue)
        return plan
    for name in entry.records:
        if (folder / name).is_file():
            _count(entry, name, folder, plan)
    for pattern, number in entry.files.items():
        found = sum(1 for path in folder.glob(pattern) if path.is_file() and path.stat().st_size)
        if found != number:
            plan.faults.append(f"{pattern}: {found:,} files that are not empty instead of {number:,}")
    for name, size, sha256 in _known(entry):
        path = folder / name
        if path.is_file() and size is not None and path.stat().st_size != size:
            plan.faults.append(f"{name}: {path.stat().st_size:,} bytes instead of {size:,}")
        elif path.is_file() and sha256 and (checksums or path.stat().st_size < 1 << 24) and sha256_of(path) != sha256:
            plan.faults.append(f"{name}: another SHA-256 than the published file")
    plan.pictures = check_pictures(entry.pictures, folder, report=report)
    plan.faults += [name for name in plan.pictures.missing if name not in plan.faults]
    plan.faults += plan.pictures.faults(max_lost)
    if not plan.faults:
        plan.faults += look(entry, folder)
    plan.files |= {p: (folder / p).stat().st_size for p in entry.tree if (folder / p).is_file()}
    return plan


def _count(entry: Entry, name: str, folder: Path, plan: Adoption) -> None:
    plan.files[name] = (folder / name).stat().st_size
    try:
        found = count_records(folder / name)
    except DataError as error:
        plan.faults.append(error.found)
        return
    plan.counts[name] = {"records": found, "used": found, "dropped": 0, "renamed": 0}
    if found != entry.records[name]:
        plan.faults.append(f"{name}: {found:,} records instead of {entry.records[name]:,}")


def _missing(entry: Entry, one: Published, folder: Path) -> list[str]:
    """Return the published paths that are not there, in one line when there is none of them."""
    wanted = list(dict.fromkeys([*one.absent, *entry.records, *entry.tree]))
    missing = [path for path in wanted if path in one.absent or not is_in_tree(folder, path)]
    if wanted and len(missing) == len(wanted) and not one.absent:
        return [f"none of what it consists of is in it ({', '.join(wanted[:3])}, ...)"]
    return [f"not there: {path}" for path in missing]


def _other(one: Published, catalogue: dict[str, Entry]) -> list[str]:
    """Return what a folder is instead: the entry of which it has the most."""
    place = one.parts.get("")
    found = {e.name: len(_expected_in(e, "", place)) for e in catalogue.values() if place and e is not one.entry}
    name = max(found, key=lambda name: found[name], default="")
    return [f"it looks like {name}"] if name and found[name] else []


def _known(entry: Entry) -> list[tuple[str, int | None, str | None]]:
    """Return (path below the folder, size, SHA-256) of the files that the catalogue knows."""
    urls = [(s.target, s.size, s.sha256) for s in entry.source if isinstance(s, UrlSource) and not s.members]
    hubs = [(name, k.size, k.sha256) for s in entry.source if isinstance(s, HubSource) for name, k in s.known.items()]
    return [*urls, *hubs]


def in_the_way(plan: Adoption) -> str | None:
    """Return why the links of an entry cannot be made; links of an earlier adoption of the same tree are no reason."""
    for name, target in plan.links.items():
        path = plan.published.entry.path / name
        if path.is_symlink() and path.resolve() == target.resolve():
            continue
        if path.is_symlink() or path.exists():
            return f"{path} is there already, and is not a link to {target}"
    return None


def is_adopted(plan: Adoption) -> bool:
    """Return whether an entry is adopted from the same places already, with the same content."""
    manifest = adopted_from(plan.published.entry)
    return manifest is not None and manifest == _manifest(plan)


def adopt(plan: Adoption) -> None:
    """Make the links of one entry, and its manifests last."""
    entry = plan.published.entry
    with locked(entry.path, f"vlm data adopt {entry.name}"):
        for name, target in plan.links.items():
            path = entry.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_symlink():
                path.symlink_to(_as_link(path, target))
        write_ledger(entry.path / ledger_name(entry), plan.pictures.losses)
        for name in (MANIFEST,) * bool(entry.automatic) + (organized_name(entry),) * bool(entry.organize):
            write_json(entry.path / name, _manifest(plan))


def _as_link(path: Path, target: Path) -> str:
    """Return the text of a link: relative within the home, which may be moved; else absolute."""
    target = Path(os.path.abspath(target))  # noqa: PTH100  # links in the tree stay as they are
    inside = target.is_relative_to(home())
    return os.path.relpath(target, path.parent.resolve()) if inside else str(target)


def _manifest(plan: Adoption) -> TreeManifest:
    one = plan.published
    source: dict[str, Any] = {"kind": "adopted", "from": {name: str(p.resolve()) for name, p in one.parts.items()}}
    return {
        "name": one.entry.name,
        "source": source,
        "verified": False,
        "files": {name: {"size": size} for name, size in sorted(plan.files.items())},
        "links": {name: str(target.resolve()) for name, target in sorted(plan.links.items())},
        "counts": plan.counts,
        "folders": plan.pictures.as_dict(),
        "lost": len(plan.pictures.losses),
    }
