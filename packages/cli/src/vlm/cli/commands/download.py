"""`vlm download`: fetch weights, datasets and benchmarks."""

import json
from pathlib import Path
from typing import Annotated

import typer

from vlm.core.catalogue import BuiltSource, Entry, HubSource, ManualSource, find_entry, find_group, load_catalogue
from vlm.core.errors import ConfigError
from vlm.core.fetch import fetch
from vlm.core.home import home
from vlm.core.manifest import state
from vlm.core.progress import byte_bar, human_bytes
from vlm.core.transfer import Patience

app = typer.Typer()


@app.command()
def download(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names from `vlm list weights` and `vlm list data`.")
    ] = None,
    group: Annotated[str | None, typer.Option("--all", help="Every entry of a group, such as quickstart.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be fetched, and fetch nothing.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Commit of a hub repository that the catalogue does not pin.")
    ] = None,
    find_links: Annotated[
        Path | None, typer.Option(help="Folder of wheels to use instead of the package index.")
    ] = None,
    catalogue: Annotated[
        Path | None, typer.Option(help="A catalogue of your own beside the shipped one (YAML).")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare checksums of what is here, not only sizes.")
    ] = False,
    retries: Annotated[int, typer.Option(min=1, help="Tries in a row without a new byte before giving up.")] = 6,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list on standard output.")] = False,
) -> None:
    """Fetch weights, datasets and benchmarks into the published folder trees.

    Interrupted at any moment, the same command goes on. What is complete is left alone.
    """
    known = load_catalogue(catalogue)
    entries = [find_entry(name, known) for name in names or []] + (find_group(group, known) if group else [])
    entries = list({entry.name: entry for entry in entries}.values())
    if not entries:
        raise ConfigError("nothing to download", fix="name something, or: vlm download --all quickstart")
    if revision and len(entries) > 1:
        raise ConfigError(f"one --revision for {len(entries)} downloads", fix="download them one at a time")
    rows = []
    for entry in entries:
        if dry_run:
            outcome = state(entry.path)
        else:
            with byte_bar(entry.name, enabled=not as_json) as report:
                patience = Patience(tries=retries)
                outcome = fetch(
                    entry, revision=revision, find_links=find_links, verify=verify, patience=patience, report=report
                )
        rows.append(_row(entry, outcome, revision))
        if not as_json:
            typer.echo(f"{entry.name}: {_action(entry, outcome, revision)}" if dry_run else _done(entry, outcome))
    if as_json:
        typer.echo(json.dumps(rows, indent=1))


def _row(entry: Entry, outcome: str, revision: str | None) -> dict[str, object]:
    return {
        "name": entry.name,
        "kind": entry.kind,
        "state": outcome,
        "action": _action(entry, outcome, revision),
        "size": entry.size,
        "licence": entry.licence,
        "folder": str(entry.path),
        "sources": [source.model_dump(mode="json") for source in entry.source],
    }


def _action(entry: Entry, outcome: str, revision: str | None) -> str:
    if outcome in ("present", "fetched"):
        return "nothing to do"
    if any(isinstance(s, ManualSource) for s in entry.source):
        return "fetch by hand: `vlm download` without --dry-run says how"
    for source in entry.source:
        if isinstance(source, BuiltSource):
            return f"make with `{source.command}`"
        if isinstance(source, HubSource) and not (revision or source.revision):
            return f"needs --revision (a commit of {source.repo})"
    verb = {"partial": "go on fetching", "damaged": "repair"}.get(outcome, "fetch")
    return f"{verb} {human_bytes(entry.size)} to {entry.folder} ({entry.licence})"


def _done(entry: Entry, outcome: str) -> str:
    where = entry.path.relative_to(home()) if entry.path.is_relative_to(home()) else entry.path
    return f"{entry.name}: {'already complete' if outcome == 'present' else 'fetched'} in {where}"
