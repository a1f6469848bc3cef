"""Make a training set by its name: published `conversations` JSONL beside the images.

    organize("digits")          # dataset/digits/{images,train.jsonl,test.jsonl}; the second time "present"
    organize("V2PE-Data")       # by the steps in the catalogue (vlm.core.organize.tree)

Paths in a record are relative to the folder of its JSONL file. The same options give the same bytes.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from vlm.core.errors import ConfigError, DataError, UnknownName
from vlm.core.fetch.catalogue import Entry, find_entry, load_catalogue
from vlm.core.fetch.manifest import (
    MANIFEST,
    PARTIAL,
    count_records,
    damaged_files,
    files_below,
    finish_install,
    install,
    read_manifest,
)
from vlm.core.fetch.miniature import refuse_miniature
from vlm.core.fetch.transfer import disk_errors
from vlm.core.home import locked
from vlm.core.organize.tree import organize_tree
from vlm.core.progress import Shown, not_shown


@dataclass(frozen=True)
class OrganizeOptions:
    """Options of `organize`.

    `questions_per_record`: turns in a record of easy-vqa (1: one question a record). `verify`, `max_lost`: see
    organize_tree.
    """

    seed: int = 0
    questions_per_record: int = 4
    verify: bool = False
    max_lost: float = 0.01


Organizer = Callable[[dict[str, Path], Path, OrganizeOptions], None]
"""`organizer(folder of each source, empty output folder, options)` writes the files of one set."""

ORGANIZERS = {
    "easy-vqa": "vlm.core.synth.sets.easy_vqa:organize_easy_vqa",
    "photographs": "vlm.core.synth.sets.photographs:organize_photographs",
    "digits": "vlm.core.synth.sets.digits:organize_digits",
    "charts": "vlm.core.synth.sets.charts:organize_charts",
}
"""Name of a generated set -> import string of its organizer; other sets are made by the steps of their entries."""

REVISION = 2
"""Raised when an organizer writes other files or bytes: sets that an earlier release made are made again."""

BESIDE = ".vlm-organised.json"
"""Manifest of files that are added to a downloaded folder, which keeps its own manifest."""


def organize(
    name: str,
    options: OrganizeOptions = OrganizeOptions(),
    *,
    catalogue: dict[str, Entry] | None = None,
    shown: Shown = not_shown,
) -> str:
    """Make the set `name` from its downloaded sources; do nothing when it is there with the same options.

    Args:
        name: Name of a catalogue entry.
        options: See `OrganizeOptions`.
        catalogue: The entries; by default the shipped ones.
        shown: Shows the progress of each step.

    Returns:
        "present" or "organised".

    Raises:
        UnknownName: No set has this name.
        DataError: A source is missing, or the result has another number of records.
    """
    if options.questions_per_record < 1:
        raise ConfigError(f"{options.questions_per_record} questions per record", expected="at least 1")
    catalogue = catalogue or load_catalogue()
    known = {entry.name.lower(): entry for entry in catalogue.values() if can_organize(entry)}
    if name.lower() not in known:
        raise UnknownName("set", name, known, fix="a set that is not listed needs no organizing")
    entry = known[name.lower()]
    refuse_miniature(entry.path, entry.name)
    if entry.organize:
        return organize_tree(entry, catalogue, verify=options.verify, max_lost=options.max_lost, shown=shown)
    return _organize_built(entry, catalogue, options)


def can_organize(entry: Entry) -> bool:
    """Return whether `vlm data organize` has something to do for an entry."""
    return bool(entry.organize) or entry.name in ORGANIZERS


def _organize_built(entry: Entry, catalogue: dict[str, Entry], options: OrganizeOptions) -> str:
    sources = {need: find_entry(need, catalogue) for need in entry.needs or (entry.name,)}
    made_from = {}
    for need, source in sources.items():
        manifest = read_manifest(source.path)
        if manifest is None or damaged_files(source.path, manifest):
            raise DataError(f"{entry.name} is made from {need}, which is not complete", fix=f"vlm download {need}")
        made_from[need] = manifest["source"]
    chosen = {"seed": options.seed, "questions_per_record": options.questions_per_record}
    described = {"kind": "built", "revision": REVISION, "options": chosen, "from": made_from}
    manifest_name = MANIFEST if entry.needs else BESIDE
    with disk_errors(entry.path), locked(entry.path, f"vlm data organize {entry.name}"):
        finish_install(entry.path)
        manifest = read_manifest(entry.path, manifest_name)
        if manifest and manifest["source"] == described and not damaged_files(entry.path, manifest):
            return "present"
        out = entry.path / PARTIAL / "organise"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        module, function = ORGANIZERS[entry.name].split(":")
        organizer: Organizer = getattr(import_module(module), function)
        organizer({need: source.path for need, source in sources.items()}, out, options)
        staged = files_below(out)
        for path, target in staged:
            expected = entry.records.get(target)
            if expected is not None and (found := count_records(path)) != expected:
                raise DataError(f"{entry.name}: {target} has {found} records", expected=str(expected))
        install(entry.path, staged, name=entry.name, source=described, manifest=manifest_name)
    return "organised"
