"""`vlm download`: fetch weights, datasets and benchmarks."""

from pathlib import Path
from typing import Annotated

import typer

from vlm.cli.find import find_entries
from vlm.cli.options import EntryChoice, grouped
from vlm.cli.show.catalogue import human_size
from vlm.cli.show.say import say, say_json
from vlm.core.errors import ConfigError, UnknownName, VlmError
from vlm.core.fetch.catalogue import BuiltSource, Entry, load_catalogue
from vlm.core.fetch.fetch import Repository, came_from_modelscope, fetch, refuse_by_hand
from vlm.core.fetch.installed import entry_state, is_built
from vlm.core.fetch.transfer import Patience
from vlm.core.home import home
from vlm.core.progress import byte_bar, human_bytes

app = typer.Typer()

SOURCES = ("hub", "modelscope")


@app.command()
@grouped
def download(
    choice: EntryChoice,
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Names from `vlm list weights`, `data` and `benchmarks`; or NAMESPACE/NAME, of the hub."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be fetched, and fetch nothing.")] = False,
    revision: Annotated[
        str | None,
        typer.Option(help="Commit or branch of a hub repository. Default: the catalogue's, else its newest."),
    ] = None,
    locked: Annotated[
        bool, typer.Option("--locked", help="Refuse what neither the catalogue nor --revision pins to a commit.")
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(metavar="hub|modelscope", help="Where weights come from. Default: the hub, or as begun."),
    ] = None,
    find_links: Annotated[
        Path | None, typer.Option(help="Folder of wheels to use instead of the package index.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare checksums of what is here, not only sizes.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Files at a time.")] = 4,
    retries: Annotated[int, typer.Option(min=1, help="Tries in a row without a new byte before giving up.")] = 6,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list on standard output.")] = False,
) -> None:
    """Fetch weights, datasets and benchmarks into their folders below the home.

    After an interruption, rerun the same command to continue. Complete entries are left alone. Entries that cannot be
    fetched are named at the end.
    """
    known = load_catalogue(choice.catalogue)
    entries = find_entries(known, names, choice)
    if not entries:
        raise ConfigError("nothing to download", fix="name something, or: vlm download --all quickstart")
    if source not in (None, *SOURCES):
        raise UnknownName("source", source, SOURCES)
    if source == "modelscope":
        entries = [entry.from_modelscope() for entry in entries]
    elif source is None:
        entries = [entry.from_modelscope() if came_from_modelscope(entry) else entry for entry in entries]
    if revision and len(entries) > 1:
        raise ConfigError(f"one --revision for {len(entries)} downloads", fix="download them one at a time")
    rows: list[dict[str, object]] = []
    failed: list[tuple[Entry, VlmError]] = []
    for entry in entries:
        outcome = entry_state(entry)
        if not dry_run:
            try:
                if is_built(entry) and len(entries) > 1:
                    outcome = "to be made"
                elif outcome == "present" and not verify:
                    pass  # also when its archives were unpacked and then removed
                else:
                    with byte_bar(entry.name, enabled=not as_json) as report:
                        outcome = fetch(
                            entry,
                            revision=revision,
                            pinned_only=locked,
                            say=lambda line: say(line, err=as_json),
                            find_links=find_links,
                            verify=verify,
                            jobs=jobs,
                            patience=Patience(tries=retries),
                            report=report,
                        )
                    refuse_by_hand(entry)
            except VlmError as error:
                if len(entries) == 1:
                    raise
                outcome = "failed"
                failed.append((entry, error))
        rows.append(_row(entry, outcome, revision))
        if not as_json:
            say(f"{entry.name}: {_action(entry, outcome, revision)}" if dry_run else _done(entry, outcome))
    if as_json:
        say_json(rows)
    elif dry_run:
        say(_sum(entries, revision), end="")
    if failed:
        lines = "\n".join(f"{entry.name}: {error}" for entry, error in failed)
        raise type(failed[0][1])(f"{len(failed)} of {len(entries)} were not fetched:\n{lines}")


def _row(entry: Entry, outcome: str, revision: str | None) -> dict[str, object]:
    return {
        "name": entry.name,
        "kind": entry.kind,
        "state": outcome,
        "action": _action(entry, outcome, revision),
        "size": entry.size,
        "size_is": entry.size_is,
        "licence": entry.license,
        "terms": entry.terms,
        "folder": str(entry.path),
        "by_hand": [source.instructions for source in entry.by_hand()],
        "sources": [source.model_dump(mode="json") for source in entry.source],
    }


def _action(entry: Entry, outcome: str, revision: str | None) -> str:
    if outcome in ("present", "fetched"):
        return "nothing to do"
    if outcome == "miniature":
        return f"refused: {entry.folder} holds a generated miniature; remove it, or move it away"
    if outcome == "downloaded":
        return f"here; next: vlm data organize {entry.name}"
    for source in entry.source:
        if isinstance(source, BuiltSource):
            return f"make with `{source.command}`"
    hand = " ".join(f"by hand: {source.instructions}" for source in entry.by_hand())
    if outcome == "by hand" or not entry.automatic:
        return hand or "nothing to do"
    verb = {"partial": "continue fetching", "damaged": "repair"}.get(outcome, "fetch")
    newest = f", the newest commit of {', '.join(repos)}" if (repos := _unpinned(entry, revision)) else ""
    return f"{verb} {human_size(entry)} to {entry.folder} ({entry.license}){newest}" + (f"; {hand}" if hand else "")


def _unpinned(entry: Entry, revision: str | None) -> list[str]:
    return [s.repo for s in entry.source if isinstance(s, Repository) and not (revision or s.revision)]


def _sum(entries: list[Entry], revision: str | None) -> str:
    """Sum up what is left to fetch: bytes and licenses, unknown sizes, steps by hand."""
    left = [
        e
        for e in entries
        if entry_state(e) in ("absent", "partial", "damaged", "by hand", "miniature") and not is_built(e)
    ]
    if len(entries) < 2:
        return ""
    open_ones = [entry for entry in left if entry.automatic]
    unknown = [entry.name for entry in open_ones if entry.size is None]
    total = sum(entry.size or 0 for entry in open_ones)
    kinds = {entry.size_is for entry in open_ones if entry.size}
    lines = [f"total: {'' if kinds <= {'exact'} else 'about '}{human_bytes(total)} for {len(open_ones)} downloads"]
    if unknown:
        lines.append(f"and of unknown size: {', '.join(unknown)}")
    licenses: dict[str, list[str]] = {}
    for entry in left:
        licenses.setdefault(entry.license, []).append(entry.name)
    lines += [f"license {license}: {', '.join(names)}" for license, names in sorted(licenses.items())]
    lines += [f"terms of {entry.name}: {entry.terms}" for entry in left if entry.terms]
    if by_hand := [entry.name for entry in left if entry.by_hand()]:
        lines.append(f"by hand: {', '.join(by_hand)}")
    if needing := [entry.name for entry in left if _unpinned(entry, revision)]:
        lines.append(f"not pinned, the newest commit is taken and noted: {', '.join(needing)}")
    return "\n".join(lines) + "\n"


def _done(entry: Entry, outcome: str) -> str:
    where = entry.path.relative_to(home()) if entry.path.is_relative_to(home()) else entry.path
    said = {"present": f"already complete in {where}", "failed": "not fetched", "to be made": "to be made"}
    line = f"{entry.name}: {said.get(outcome, f'fetched in {where}')}"
    if outcome == "to be made" or (entry.organize and entry_state(entry) == "downloaded"):
        line += f"; next: vlm data organize {entry.name}"
    return line
