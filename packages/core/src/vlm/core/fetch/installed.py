"""Local state of a catalogue entry."""

from fnmatch import fnmatchcase
from typing import cast

from vlm.core.errors import DataError
from vlm.core.fetch.catalogue import BuiltSource, Entry
from vlm.core.fetch.manifest import MANIFEST, TreeManifest, damaged_files, folder_state, read_manifest
from vlm.core.fetch.miniature import is_miniature


def organized_name(entry: Entry) -> str:
    """Return the name of the manifest that marks an entry as organized; several entries may share a folder."""
    return f".vlm-organised-{entry.name}.json"


def ledger_name(entry: Entry) -> str:
    """Return the name of the file that lists the dropped records of an entry."""
    return f"ledger-{entry.name}.jsonl"


def entry_state(entry: Entry) -> str:
    """Return the local state of an entry.

    `absent`, `partial`, `damaged`, `by hand` (a person must fetch the rest), `downloaded` (to be organized), `present`,
    or `miniature` (generated data are in its folder).
    """
    if is_miniature(entry.path):
        return "miniature"
    if manifest := adopted_from(entry):
        return "damaged" if _gone(entry, manifest) else "present"
    made = (entry.path / organized_name(entry)).is_file()
    if is_built(entry):
        return folder_state(entry.path) if not entry.organize else "present" if made else "absent"
    found = folder_state(entry.path) if entry.automatic else "absent" if entry.by_hand() else "present"
    if found == "damaged" and made and _only_archives_are_gone(entry):
        found = "present"
    if found == "present" and entry.by_hand():
        return "by hand"
    return "downloaded" if found == "present" and entry.organize and not made else found


def adopted_from(entry: Entry) -> TreeManifest | None:
    """Return the manifest of an entry that `vlm data adopt` linked from a tree elsewhere; None for others."""
    name = organized_name(entry) if entry.organize else MANIFEST
    manifest = read_manifest(entry.path, name)
    source = manifest["source"] if manifest else None
    return cast(TreeManifest, manifest) if isinstance(source, dict) and source.get("kind") == "adopted" else None


def _gone(entry: Entry, manifest: TreeManifest) -> list[str]:
    links = [name for name in manifest["links"] if not (entry.path / name).exists()]
    return [*links, *damaged_files(entry.path, manifest)]


def is_whole_adoption(entry: Entry) -> bool:
    """Return whether an entry is adopted and all there; nothing must be written through its links.

    Raises:
        DataError: It is adopted, and something of the tree is gone or was changed.
    """
    manifest = adopted_from(entry)
    if manifest and (gone := _gone(entry, manifest)):
        places = ", ".join(dict.fromkeys(manifest["source"]["from"].values()))
        raise DataError(
            f"{entry.name} is adopted from {places}, where {gone[0]} is gone or was changed",
            expected="the tree as it was adopted; nothing is written into it",
            fix=f"repair it there and adopt it again, or remove {entry.path}, then: vlm download {entry.name}",
        )
    return manifest is not None


def _only_archives_are_gone(entry: Entry) -> bool:
    """Return whether a person has removed archives that were unpacked, and nothing else."""
    manifest = read_manifest(entry.path)
    patterns = [step.unpack.archives for step in entry.organize if step.unpack]
    damaged = damaged_files(entry.path, manifest) if manifest else []
    gone = [name for name in damaged if not (entry.path / name).exists()]
    cut = [name for name in damaged if name not in gone]
    return not cut and all(any(fnmatchcase(name, pattern) for pattern in patterns) for name in gone)


def is_built(entry: Entry) -> bool:
    """Return whether an entry is made here from others."""
    return any(isinstance(source, BuiltSource) for source in entry.source)
