"""The folder tree of an entry, made from its download by the steps in the catalogue, and verified."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from vlm.core.errors import DataError
from vlm.core.fetch.catalogue import Entry, find_entry
from vlm.core.fetch.installed import entry_state, is_built, is_whole_adoption, ledger_name, organized_name
from vlm.core.fetch.manifest import PARTIAL, TreeManifest, count_records, damaged_files, read_manifest
from vlm.core.fetch.miniature import refuse_miniature
from vlm.core.fetch.transfer import disk_errors
from vlm.core.home import locked, write_json
from vlm.core.ledger import SetAccount, write_ledger
from vlm.core.organize.pictures import check_pictures
from vlm.core.organize.run_steps import run_step
from vlm.core.progress import Shown, not_shown


def organize_tree(
    entry: Entry,
    catalogue: dict[str, Entry],
    *,
    verify: bool = False,
    max_lost: float = 0.01,
    shown: Shown = not_shown,
) -> str:
    """Unpack, link and convert as `entry` says, then check counts and tree; do nothing when that is done.

    The entries that it needs are organized first. Every step that can run does, so that the error names all that is
    missing.

    Args:
        entry: The entry.
        catalogue: All entries, for those that it needs.
        verify: Decode every picture and video, not only headers.
        max_lost: Largest share of records that may be dropped.
        shown: Shows the progress of each step.

    Returns:
        "present" or "organised".

    Raises:
        DataError: Something is missing (the message gives the commands and steps that fix it), record counts differ
            from the published ones, or too many records are dropped.
        FetchError: An archive is unsafe or damaged.
    """
    folder, outcome = entry.path, SetAccount()
    refuse_miniature(folder, entry.name)
    if is_whole_adoption(entry):
        return "present"
    missing = _organize_needs(entry, catalogue, verify, max_lost, shown)
    fetched = read_manifest(folder) if entry.automatic else None
    downloaded = fetched["source"] if fetched else None
    described = {
        "steps": [step.model_dump(mode="json", by_alias=True) for step in entry.organize],
        "from": downloaded,
    }
    with disk_errors(folder), locked(folder, f"vlm data organize {entry.name}"):
        scratch = folder / PARTIAL / f"organise-{entry.name}"
        if not missing and _is_done(entry, described, verify):
            _clear(scratch)  # a kill may fall between the manifest and the end of this function
            return "present"
        missing += _not_downloaded(entry)
        (folder / organized_name(entry)).unlink(missing_ok=True)
        for number, step in enumerate(entry.organize):
            title = f"{entry.name}: step {number + 1} of {len(entry.organize)}, {step.kind.replace('_', ' ')}"
            with shown(title, "records" if step.records else "files") as report:
                outcome.add(run_step(step, folder, scratch / str(number), verify=verify, report=report))
        with shown(f"{entry.name}: pictures", "records") as report:
            pictured = check_pictures(entry.pictures, folder, report=report)
        outcome.losses += pictured.losses
        outcome.missing += pictured.missing
        write_ledger(folder / ledger_name(entry), outcome.losses)
        counts = _counts(entry, outcome)
        known = bool(missing)  # what is missing in other sets is in the list already
        missing += [f"{entry.folder}/{name}" for name in outcome.missing if not (known and "(from dataset/" in name)]
        missing += [f"{entry.folder}/{p}" for p in entry.tree if not is_in_tree(folder, p)]
        if missing:
            raise DataError(
                f"{entry.name} is incomplete; missing:\n" + "\n".join(f"  {line}" for line in dict.fromkeys(missing))
            )
        _refuse_counts(entry, counts, max_lost)
        if few := pictured.faults(max_lost):
            raise DataError(
                f"{entry.name}: pictures are missing:\n" + "\n".join(f"  {line}" for line in few),
                expected=f"at most {max_lost:.1%} of the records of each folder",
                fix=f"read {entry.folder}/{ledger_name(entry)}; get the files again, or allow it with --max-lost",
            )
        manifest: TreeManifest = {
            "name": entry.name,
            "source": described,
            "verified": verify,
            "files": {name: {"size": size} for name, size in outcome.files.items()},
            "links": outcome.links,
            "counts": counts,
            "folders": pictured.as_dict(),
            "lost": len(outcome.losses),
        }
        write_json(folder / organized_name(entry), manifest)
        _clear(scratch)
    return "organised"


def _clear(scratch: Path) -> None:
    """Remove the working folder of finished steps, and the folder of all working folders when it is empty."""
    if scratch.exists():
        shutil.rmtree(scratch)
        if not any(scratch.parent.iterdir()):
            scratch.parent.rmdir()


def _organize_needs(
    entry: Entry, catalogue: dict[str, Entry], verify: bool, max_lost: float, shown: Shown
) -> list[str]:
    """Organize the needs that are downloaded; return one line for each of the others."""
    missing = []
    for name in entry.needs:
        need = find_entry(name, catalogue)
        found = entry_state(need)
        if found == "present":
            continue
        if need.organize and (found == "downloaded" or is_built(need)):
            try:
                organize_tree(need, catalogue, verify=verify, max_lost=max_lost, shown=shown)
            except DataError as error:
                first, *lines = error.found.splitlines()
                missing += [line.strip() for line in lines] if first.endswith("missing:") else [error.found]
            continue
        hand = [f"{path} by hand: {s.instructions}" for s in need.by_hand() for path in s.paths or ("its files",)]
        missing += [f"{need.folder}/{line}" for line in hand] or [f"{need.folder}: vlm download {need.name}"]
    return missing


def _not_downloaded(entry: Entry) -> list[str]:
    folder = entry.path
    manifest = read_manifest(folder)
    lines = []
    if entry.automatic and manifest is None:
        lines.append(f"{entry.folder}: vlm download {entry.name}")
    elif manifest and entry.automatic and (bad := damaged_files(folder, manifest)):
        lines.append(f"{entry.folder}/{bad[0]} and {len(bad) - 1} more: vlm download {entry.name}")
    for source in entry.by_hand():
        mirror = f" Mirror: {source.mirror}" if source.mirror else ""
        lines += [f"{entry.folder}/{path}, by hand: {source.instructions}{mirror}" for path in source.paths]
    return lines


def _is_done(entry: Entry, described: dict[str, Any], verify: bool) -> bool:
    manifest = cast(TreeManifest | None, read_manifest(entry.path, organized_name(entry)))
    if not manifest or manifest["source"] != described or manifest.get("verified", False) < verify:
        return False
    links = all((entry.path / name).exists() for name in manifest.get("links", {}))
    return links and not damaged_files(entry.path, manifest) and all(is_in_tree(entry.path, p) for p in entry.tree)


def is_in_tree(folder: Path, pattern: str) -> bool:
    """Return whether a path or pattern of the tree exists; a folder must not be empty."""
    found = folder / pattern
    paths = [found] if found.exists() else folder.glob(pattern)
    return any(not path.is_dir() or any(path.iterdir()) for path in paths)


def _counts(entry: Entry, outcome: SetAccount) -> dict[str, dict[str, int]]:
    """Return the records of each annotation file that a step read or that the catalogue counts."""
    counts = {name: asdict(count) for name, count in outcome.counts.items()}
    for name in entry.records:
        path = entry.path / name
        if name not in counts and path.is_file():
            number = count_records(path)
            counts[name] = {"records": number, "used": number, "dropped": 0, "renamed": 0}
    return counts


def _refuse_counts(entry: Entry, counts: dict[str, dict[str, int]], max_lost: float) -> None:
    wrong = [
        f"  {name}: {counts[name]['records'] if name in counts else 'no file'} instead of {expected}"
        for name, expected in entry.records.items()
        if name not in counts or counts[name]["records"] != expected
    ]
    if wrong:
        raise DataError(f"{entry.name}: record counts differ from the published ones:\n" + "\n".join(wrong))
    total = sum(count["records"] for count in counts.values())
    dropped = sum(count["dropped"] for count in counts.values())
    if total and dropped / total > max_lost:
        raise DataError(
            f"{entry.name}: {dropped} of {total} records cannot be used",
            expected=f"at most {max_lost:.1%}",
            fix=f"read {entry.folder}/{ledger_name(entry)}; fix the files, or allow it with --max-lost",
        )
