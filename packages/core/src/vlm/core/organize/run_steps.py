"""Run the steps that make a set's folder tree. Each can be cut short at any moment and run again to the same files."""

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlm.core.fetch.archive import extract
from vlm.core.fetch.manifest import read_if_whole, refuse_name
from vlm.core.fetch.step_schema import Link, Step, Unpack
from vlm.core.home import dataset, write_json
from vlm.core.ledger import Count, SetAccount
from vlm.core.organize.convert_media import to_jpegs, to_middle_frames, to_pictures
from vlm.core.organize.convert_records import convert_records
from vlm.core.paths import is_data


def run_step(step: Step, folder: Path, scratch: Path, *, verify: bool = False) -> SetAccount:
    """Run one step on the entry's `folder`; a step that is done is not run again.

    A step is done when it ran with the same inputs and dropped no record.

    Args:
        step: The step.
        folder: Folder of the entry.
        scratch: Folder of unfinished work, for this step alone.
        verify: Decode every picture and video.

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
    outcome = _run(step, folder, scratch, verify)
    if not outcome.missing:
        write_json(done, {"key": key, **asdict(outcome)})
    return outcome


def _run(step: Step, folder: Path, scratch: Path, verify: bool) -> SetAccount:
    if step.unpack:
        return unpack(step.unpack, folder, scratch)
    if step.link:
        return link(step.link, folder)
    if step.jpeg:
        return to_jpegs(step.jpeg, folder)
    if step.middle_frame:
        return to_middle_frames(step.middle_frame, folder)
    if step.parquet:
        return to_pictures(step.parquet, folder)
    assert step.records
    return convert_records(step.records, folder, verify=verify)


def unpack(rule: Unpack, folder: Path, scratch: Path) -> SetAccount:
    """Run an `Unpack` step. An archive is read to its end before any of its files appears in the tree."""
    archives = sorted(path for path in folder.glob(rule.archives) if path.is_file())
    if not archives:
        return SetAccount(missing=[rule.archives])
    outcome = SetAccount()
    for number, parts in enumerate([archives] if rule.parts else [[path] for path in archives]):
        listing = scratch / f"{number}.json"
        found = read_if_whole(listing)
        if found is None:
            names = [name for _, name in extract(parts, rule.members, scratch / str(number))]
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
                (folder / target).parent.mkdir(parents=True, exist_ok=True)
                staged.replace(folder / target)
            outcome.files[target] = (folder / target).stat().st_size
    return outcome


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
