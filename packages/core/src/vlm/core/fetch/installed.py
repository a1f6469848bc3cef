"""Local state of a catalogue entry."""

from fnmatch import fnmatchcase

from vlm.core.fetch.catalogue import BuiltSource, Entry
from vlm.core.fetch.manifest import damaged_files, folder_state, read_manifest


def organized_name(entry: Entry) -> str:
    """Return the name of the manifest that marks an entry as organized; several entries may share a folder."""
    return f".vlm-organised-{entry.name}.json"


def ledger_name(entry: Entry) -> str:
    """Return the name of the file that lists the dropped records of an entry."""
    return f"ledger-{entry.name}.jsonl"


def entry_state(entry: Entry) -> str:
    """Return the local state of an entry.

    `absent`, `partial`, `damaged`, `by hand` (a person must fetch the rest), `downloaded` (to be organized) or
    `present`.
    """
    made = (entry.path / organized_name(entry)).is_file()
    if is_built(entry):
        return folder_state(entry.path) if not entry.organize else "present" if made else "absent"
    found = folder_state(entry.path) if entry.automatic else "absent" if entry.by_hand() else "present"
    if found == "damaged" and made and _only_archives_are_gone(entry):
        found = "present"
    if found == "present" and entry.by_hand():
        return "by hand"
    return "downloaded" if found == "present" and entry.organize and not made else found


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
