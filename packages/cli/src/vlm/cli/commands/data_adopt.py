"""`vlm data adopt`: take a published folder tree where it lies, by links."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from vlm.cli.show.say import say
from vlm.core.errors import DataError, VlmError
from vlm.core.fetch.catalogue import Entry, find_benchmark, find_entry, load_catalogue
from vlm.core.fetch.installed import adopted_from, entry_state
from vlm.core.home import lookup
from vlm.core.progress import count_bar

if TYPE_CHECKING:
    from vlm.core.organize.adopt import Adoption

SHOWN = 12
"""Faults of one set that the message lists."""


def adopt(
    tree: Annotated[
        Path, typer.Argument(metavar="DIR", help="What holds dataset/ or data/, one of these, or a benchmark's folder.")
    ],
    names: Annotated[
        list[str] | None, typer.Argument(help="Only these sets or benchmarks. Default: all found.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Verify, say what would be done, and write nothing.")
    ] = False,
    max_lost: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a folder's records that may name a missing picture.")
    ] = 0.01,
    verify: Annotated[bool, typer.Option("--verify", help="Compare all known checksums, of large files too.")] = False,
    catalogue: Annotated[Path | None, typer.Option(help="YAML file with entries of your own.")] = None,
) -> None:
    """Use data in the folders of the published READMEs where they lie: verify them, link them, write manifests.

    Known are dataset/{annotation,image,val}, dataset/benchmark/{MM-NIAH,MileBench,MVBench}, data/BENCH and
    data/coco/{train2014,train2017,val2014}. Nothing is moved, copied, deleted or written in DIR. All sets that are
    found must be whole, else nothing is written.
    """
    from vlm.core.organize import adopt as published

    folder, known = lookup(tree), load_catalogue(catalogue)
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}", fix="name the folder that holds dataset/ or data/")
    wanted = {_entry(name, known).name for name in names} if names else None
    found = published.find_published(folder, known, wanted)
    if not found or (wanted and len(found) < len(wanted)):
        lacking = ", ".join(sorted((wanted or set()) - {one.entry.name for one in found}))
        raise DataError(
            f"{folder} holds no published folder{' of ' + lacking if lacking else ''}",
            expected="dataset/{annotation,image,val}, dataset/benchmark/NAME, data/NAME or data/coco/PART",
            fix="name the folder that holds dataset/ or data/; a single benchmark's folder by DIR NAME",
        )
    plans: list[Adoption] = []
    for one in found:
        state = entry_state(one.entry)
        if state == "present" and adopted_from(one.entry) is None:
            say(f"{one.entry.name}: is here already, in {one.entry.folder}; {one.source} is left alone")
            continue
        with TemporaryDirectory() as scratch, count_bar(f"{one.entry.name}: verify", "records") as report:
            plan = published.verify(
                one,
                folder,
                Path(scratch),
                known,
                look=_look,
                max_lost=max_lost,
                checksums=verify,
                report=report,
            )
        if state in ("miniature", "partial"):
            plan.faults.append(f"{one.entry.path} holds {_HOLDS[state]}: remove it first")
        elif why := published.in_the_way(plan):
            plan.faults.append(why)
        plans.append(plan)
    if any(plan.faults for plan in plans):
        raise _refusal(plans)
    for plan in plans:
        again = published.is_adopted(plan)
        if not (dry_run or again):
            published.adopt(plan)
        _tell(plan, "adopted already" if again else "would be adopted" if dry_run else "adopted")


_HOLDS = {"miniature": "a generated miniature", "partial": "an unfinished download"}


def _entry(name: str, known: dict[str, Entry]) -> Entry:
    """Return the entry of a set, or the one that serves a benchmark."""
    try:
        return find_entry(name, known)
    except VlmError as error:
        try:
            return find_benchmark(name, known)[0]
        except VlmError:
            raise error from None


def _look(entry: Entry, folder: Path) -> list[str]:
    """Return what each benchmark that reads an entry misses there."""
    from vlm.eval.benchmark import load_benchmark, tables
    from vlm.eval.loaders import load_items

    faults = []
    patterns = [name.lower().removesuffix("{variant}") for name in entry.benchmarks]
    exact = {name.lower() for name in entry.benchmarks}
    for name in tables():
        if name in exact or any(
            name.startswith(p) for p, full in zip(patterns, entry.benchmarks, strict=True) if "{" in full
        ):
            try:
                load_items(load_benchmark(name), folder)
            except DataError as error:
                faults.append(f"{name}: {error.found}".replace(f"{folder}/", ""))
    return faults


def _refusal(plans: "list[Adoption]") -> DataError:
    lines = []
    for plan in plans:
        if plan.faults:
            one, faults = plan.published, plan.faults
            more = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
            lines += [f"  {one.entry.name} in {one.source}:", *(f"    {fault}" for fault in [*faults[:SHOWN], *more])]
    whole = [plan.published.entry.name for plan in plans if not plan.faults]
    bad = sum(bool(plan.faults) for plan in plans)
    return DataError(
        "\n".join([f"{bad} of {len(plans)} sets cannot be adopted; nothing was written:", *lines]),
        expected="whole sets, each in its published folder",
        fix="complete or correct these, then rerun the same command"
        + (f"\n   or: adopt the whole ones alone, by adding their names: {' '.join(whole)}" if whole else ""),
    )


def _tell(plan: "Adoption", what: str) -> None:
    one = plan.published
    records = sum(count["records"] for count in plan.counts.values())
    about = [f"{len(plan.links)} links", *([f"{records:,} records"] if records else [])]
    if plan.pictures.counts:
        counts = plan.pictures.counts.values()
        about.append(f"{len(counts)} folders with {sum(c.files for c in counts):,} named files")
        about.append(f"{sum(c.lost for c in counts):,} records in the ledger")
    say(f"{one.entry.name}: {what} from {one.source} in {one.entry.folder} ({', '.join(about)})")
    if what == "would be adopted":
        for name, target in list(plan.links.items())[:SHOWN]:
            say(f"  {one.entry.folder}/{name} -> {target}")
        if len(plan.links) > SHOWN:
            say(f"  ... and {len(plan.links) - SHOWN} more")
