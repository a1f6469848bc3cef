"""`vlm list`: what there is, and what of it is here."""

import json
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vlm.core.catalogue import load_catalogue
from vlm.core.config import load_yaml, package_tables
from vlm.core.home import dataset
from vlm.core.manifest import state
from vlm.core.progress import human_bytes

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
    keys = [key for key in (rows[0] if rows else ()) if key not in ("folder", "from")]
    cells = [[human_bytes(row[key]) if key == "size" else str(row[key]) for key in keys] for row in rows]
    for i, key in enumerate(keys):  # names stay whole, as they must be typed; `--json` has the other fields
        whole = max(len(row[i]) for row in cells) if key in ("name", "state", "size") else None
        table.add_column(key, min_width=whole)
    for cell in cells:
        table.add_row(*cell)
    Console().print(table)


def _entries(what: What) -> list[dict[str, Any]]:
    kind = {What.weights: "weights", What.data: "data"}[what]
    return [
        {
            "name": entry.name,
            "state": state(entry.path),
            "size": entry.size,
            "licence": entry.licence,
            "title": entry.title,
            "folder": entry.folder,
            "from": ", ".join(source.kind for source in entry.source),
        }
        for entry in load_catalogue().values()
        if entry.kind == kind
    ]


def _benchmarks(what: What) -> list[dict[str, Any]]:
    """The benchmark tables, each variant a row; a folder counts as present when its data or marker is there."""
    rows = []
    for path in package_tables("vlm.eval", "benchmarks").values():
        table = load_yaml(path)
        for variant in table.get("variants") or [""]:
            name, title, folder = (
                str(table.get(key, path.stem)).replace("{variant}", str(variant)) for key in ("name", "title", "folder")
            )
            place = dataset() / folder
            filled = place.is_dir() and any(not p.name.startswith(".") for p in place.iterdir())
            found = state(place)
            here = "present" if found == "absent" and filled else found
            rows.append({"name": name, "state": here, "title": title, "folder": f"dataset/{folder}"})
    return rows


def _recipes(what: What) -> list[dict[str, Any]]:
    return [
        {"name": name, "title": str((load_yaml(path) or {}).get("title", ""))}
        for name, path in package_tables("vlm.train", "recipes").items()
        if not name.endswith("-base")
    ]
