"""Run the steps that make a set's folder tree. Each can be cut short at any moment and run again to the same files."""

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlm.core.errors import FetchError
from vlm.core.fetch.archive import extract
from vlm.core.fetch.manifest import read_if_whole, read_manifest, refuse_name, sha256_of
from vlm.core.fetch.step_schema import Link, Step, Unpack
from vlm.core.home import dataset, write_json
from vlm.core.ledger import Count, SetAccount
from vlm.core.organize.convert_media import to_jpegs, to_middle_frames, to_pictures
from vlm.core.organize.convert_records import convert_records
from vlm.core.paths import is_data
from vlm.core.progress import Report, silent


def run_step(step: Step, folder: Path, scratch: Path, *, verify: bool = False, report: Report = silent) -> SetAccount:
    """Run one step on the entry's `folder`; a step that is done is not run again.

    A step is done when it ran with the same inputs and dropped no record.

    Args:
        step: The step.
        folder: Folder of the entry.
        scratch: Folder of unfinished work, for this step alone.
        verify: Decode every picture and video.
        report: Called with files or records done, and how many there are.

    Raises:
        FetchError: An archive is damaged or unsafe.
        DataError: Annotation or parquet files cannot be read.
    """
    key = {"step": step.model_dump(mode="json", by_alias=True), "verify": verify, "inputs": _inputs(step, folder)}
    done = scratch / "done.json"
    before = read_if_whole(done)
    if before and before["key"] == key and not before["losses"] and _intact(folder, before["files"]):
        return _restored(before)
    if read_if_whole(scratch / "key.json") != key:
        shutil.rmtree(scratch, ignore_errors=True)
        write_json(scratch / "key.json", key)
    outcome = _run(step, folder, scratch, verify, report)
    if not outcome.missing:
        write_json(done, {"key": key, **asdict(outcome)})
    return outcome


def _run(step: Step, folder: Path, scratch: Path, verify: bool, report: Report) -> SetAccount:
    written = {"jpeg": "folder", "middle_frame": "into", "parquet": "into", "records": "to"}.get(step.kind)
    if written and (target := getattr(step.rule, written)):
        _refuse_other_set(folder, target)
    if step.unpack:
        return unpack(step.unpack, folder, scratch, report)
    if step.link:
        return link(step.link, folder)
    if step.jpeg:
        return to_jpegs(step.jpeg, folder, report)
    if step.middle_frame:
        return to_middle_frames(step.middle_frame, folder, report)
    if step.parquet:
        return to_pictures(step.parquet, folder, report)
    assert step.records
    return convert_records(step.records, folder, verify=verify, report=report)


def _refuse_other_set(folder: Path, target: str) -> None:
    """Check that nothing is written into another set through a link that a `link` step made.

    A link that leads out of `dataset/` is a person's own, to another disk, and is followed.

    Raises:
        FetchError: `target` is in another set.
    """
    real = (folder / target).resolve()
    if real.is_relative_to(dataset().resolve()) and not real.is_relative_to(folder.resolve()):
        raise FetchError(
            f"{folder.name}: {target} leads into another set, {real}; nothing was written there",
            expected="a path of this set alone",
            fix=f"remove the link on the way to {folder / target}, or do not use this archive or entry",
        )


def unpack(rule: Unpack, folder: Path, scratch: Path, report: Report = silent) -> SetAccount:
    """Run an `Unpack` step. An archive is read to its end before any of its files appears in the tree.

    Raises:
        FetchError: An archive is damaged or unsafe, two have different files for one path, one would replace a file
            that was downloaded, or a path leads into another set.
    """
    archives = sorted(path for path in folder.glob(rule.archives) if path.is_file())
    if not archives:
        return SetAccount(missing=[rule.archives])
    outcome, manifest = SetAccount(), read_manifest(folder)
    fetched = set(manifest["files"]) if manifest else set()
    for number, parts in enumerate([archives] if rule.parts else [[path] for path in archives]):
        listing = scratch / f"{number}.json"
        found = read_if_whole(listing)
        if found is None:
            written = extract(parts, rule.members, scratch / str(number), _after(len(outcome.files), report))
            names = [name for _, name in written]
            into = rule.into.replace("{stem}", parts[0].name.split(".")[0])
            top = f"{Path(into).name if into else folder.name}/"
            doubled = all(name.startswith(top) for name in names)
            found = {"/".join(filter(None, (into, n.removeprefix(top) if doubled else n))): n for n in names}
            write_json(listing, found)
        for target, name in found.items():
            for path in (target, name):
                refuse_name(path, parts[0].name)
            staged = scratch / str(number) / name
            if staged.exists():
                _place(staged, folder, target, parts[0].name, taken=target in outcome.files or target in fetched)
            outcome.files[target] = (folder / target).stat().st_size
    return outcome


def _after(before: int, report: Report) -> Report:
    """Return a `Report` of files that come after others."""
    return lambda done, _: report(before + done, None)


def _place(staged: Path, folder: Path, target: str, archive: str, *, taken: bool) -> None:
    """Move an unpacked file to its place; one that is `taken` must hold the same bytes."""
    path = folder / target
    _refuse_other_set(folder, target)
    blocked = path.is_dir() or any(p.is_file() for p in path.parents if p != folder and p.is_relative_to(folder))
    if blocked or (taken and path.is_file() and sha256_of(path) != sha256_of(staged)):
        raise FetchError(
            f"{archive}: its file for {target} differs from what another archive or the download has there; "
            "nothing was replaced",
            expected="one file for each path",
            fix="unpack the archives into folders of their own (`into: {stem}`), or leave one out",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    staged.replace(path)


def link(rule: Link, folder: Path) -> SetAccount:
    """Run a `Link` step."""
    target, here = dataset() / rule.source, folder / rule.to
    if not here.exists() and not target.exists():
        return SetAccount(missing=[f"{rule.to} (from dataset/{rule.source})"])
    if not here.exists() or here.is_symlink():
        here.parent.mkdir(parents=True, exist_ok=True)
        wanted = os.path.relpath(target, here.parent)
        if here.is_symlink() and not here.exists():
            here.unlink()  # it leads nowhere
        if not here.is_symlink():
            here.symlink_to(wanted)
        return SetAccount(links={rule.to: str(here.readlink())})
    return SetAccount()


def _inputs(step: Step, folder: Path) -> list[list[Any]]:
    """Return name, size and time of the files that a step reads; it runs again when they change."""
    rule = step.rule
    if step.unpack:
        paths = sorted(folder.glob(rule.archives))
    elif step.parquet:
        paths = sorted(folder.glob(rule.files))
    elif step.middle_frame:
        paths = sorted(folder.glob(rule.videos))
    elif step.jpeg:
        paths = sorted(p for p in (folder / rule.folder).glob("*") if p.suffix.lower() in rule.suffixes)
    elif step.records:
        paths = [(dataset() if rule.beside else folder) / rule.source]
    else:
        paths = []
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths if path.is_file()]


def _intact(folder: Path, files: dict[str, int]) -> bool:
    return all(
        is_data(name) and (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, size in files.items()
    )


def _restored(done: dict[str, Any]) -> SetAccount:
    counts = {name: Count(**count) for name, count in done["counts"].items()}
    return SetAccount(done["files"], done["links"], [], counts)
