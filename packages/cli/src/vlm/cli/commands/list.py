"""`vlm list`: what there is, and what of it is here."""

import json
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vlm.cli.commands.download import human_size
from vlm.core.config import load_yaml, package_tables
from vlm.core.fetch.catalogue import Entry, HubSource, ManualSource, load_catalogue
from vlm.core.fetch.installed import entry_state
from vlm.core.fetch.manifest import state
from vlm.core.home import dataset

app = typer.Typer()


class What(StrEnum):
    """The lists."""

    weights = "weights"
    data = "data"
    benchmarks = "benchmarks"
    recipes = "recipes"


@app.command("list")
def list_(
    what: Annotated[What, typer.Argument(help="Which list.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list on standard output.")] = False,
) -> None:
    """Weights, data, benchmarks or recipes, with their local state: present, partial, damaged or absent."""
    rows = {What.weights: _entries, What.data: _entries, What.benchmarks: _benchmarks, What.recipes: _recipes}[what](
        what
    )
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    table = Table(title=what.value)
    hidden = ("folder", "size", "terms", "notes", "entry")
    keys = [key for key in (rows[0] if rows else ()) if key not in hidden]
    cells = [[str(row[key]) for key in keys] for row in rows]
    for i, key in enumerate(keys):  # names stay whole, as they must be typed; `--json` has the other fields
        whole = max(len(row[i]) for row in cells) if key in ("name", "state", "bytes", "from") else None
        table.add_column(key, min_width=whole)
    for cell in cells:
        table.add_row(*cell)
    Console().print(table)


def _entries(what: What) -> list[dict[str, Any]]:
    kind = {What.weights: "weights", What.data: "data"}[what]
    return [_row(entry) for entry in load_catalogue().values() if entry.kind == kind]


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "state": entry_state(entry),
        "bytes": human_size(entry),
        "from": ", ".join(dict.fromkeys(_source(source) for source in entry.source)),
        "licence": entry.license,
        "title": entry.title,
        "size": entry.size,
        "folder": entry.folder,
        "terms": entry.terms,
        "notes": entry.notes,
    }


def _source(source: Any) -> str:
    """The kind of a source; what nobody pinned and what has a mirror is said so."""
    if isinstance(source, HubSource) and source.revision is None:
        return "hub, not pinned"
    return "by hand" if isinstance(source, ManualSource) else str(source.kind)


def _benchmarks(what: What) -> list[dict[str, Any]]:
    """The benchmark tables, each variant a row; a folder counts as present when its data or marker is there. Size,
    license and source are those of the catalogue entry that serves the folder."""
    serving = {table: entry for entry in load_catalogue().values() for table in entry.benchmarks}
    rows = []
    for path in package_tables("vlm.eval", "benchmarks").values():
        table = load_yaml(path)
        entry = serving.get(str(table.get("name", path.stem)))
        for variant in table.get("variants") or [""]:
            name, title, folder = (
                str(table.get(key, path.stem)).replace("{variant}", str(variant)) for key in ("name", "title", "folder")
            )
            place = dataset() / folder
            filled = place.is_dir() and any(not p.name.startswith(".") for p in place.iterdir())
            found = state(place)
            if entry and entry_state(entry) != "absent":
                found = entry_state(entry)
            here = "present" if found == "absent" and filled else found
            about = _row(entry) if entry else dict.fromkeys(("bytes", "from", "licence", "terms"), "") | {"size": None}
            keys = ("bytes", "from", "licence", "size", "terms")
            row = {"name": name, "state": here, "title": title, "folder": f"dataset/{folder}"}
            rows.append(row | {key: about[key] for key in keys} | {"entry": entry.name if entry else ""})
    return rows


def _recipes(what: What) -> list[dict[str, Any]]:
    return [
        {"name": name, "title": str((load_yaml(path) or {}).get("title", ""))}
        for name, path in package_tables("vlm.train", "recipes").items()
        if not name.endswith("-base")
    ]
