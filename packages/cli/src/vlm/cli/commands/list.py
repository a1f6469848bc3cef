"""`vlm list`: weights, data, benchmarks and recipes, with their local state."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vlm.cli.local_models import LocalModel, chosen_model, local_models, short_name
from vlm.cli.show.catalogue import entry_row
from vlm.cli.show.rows import show_rows
from vlm.cli.show.say import say_json
from vlm.core.config import load_yaml, package_tables
from vlm.core.errors import ConfigError
from vlm.core.fetch.catalogue import load_catalogue
from vlm.core.fetch.installed import entry_state
from vlm.core.fetch.manifest import folder_state
from vlm.core.fetch.miniature import is_marked, is_miniature
from vlm.core.home import dataset, home
from vlm.core.paths import exists

app = typer.Typer()


class What(StrEnum):
    """What can be listed."""

    weights = "weights"
    data = "data"
    benchmarks = "benchmarks"
    suites = "suites"
    recipes = "recipes"
    models = "models"


@app.command("list")
def list_(
    what: Annotated[What, typer.Argument(help="Which list.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list on standard output.")] = False,
) -> None:
    """List weights, data, benchmarks, suites or recipes with their local state: present, partial, damaged or absent.

    `vlm list models`: the models that are here, trained ones too, by the name that `--model` takes.
    """
    lists = {What.benchmarks: _benchmarks, What.suites: _suites, What.recipes: _recipes, What.models: _models}
    rows = lists.get(what, _entries)(what)
    if as_json:
        say_json(rows)
        return
    hidden = ("size", "terms", "notes", "entry", *(() if what is What.models else ("folder",)))
    show_rows([{key: value for key, value in row.items() if key not in hidden} for row in rows])


def _entries(what: What) -> list[dict[str, Any]]:
    kind = {What.weights: "weights", What.data: "data"}[what]
    return [entry_row(entry) for entry in load_catalogue().values() if entry.kind == kind]


def _benchmarks(what: What) -> list[dict[str, Any]]:
    """Return one row for each variant of each table.

    A folder counts as present when its data or marker is there. Size, license and source are those of the catalogue
    entry that serves the folder.
    """
    serving = {table: entry for entry in load_catalogue().values() for table in entry.benchmarks}
    rows = []
    own = sorted((home() / "benchmarks").glob("*.y*ml"))
    shipped = package_tables("vlm.eval", "benchmarks")
    for path in [*shipped.values(), *own]:
        if path.stem in {p.stem for p in own} and path not in own:  # replaced by one's own
            continue
        table = load_yaml(path)
        if not isinstance(table, dict):
            raise ConfigError(f"{path} holds no table", expected="a mapping with `name`, …")
        if table.get("file"):
            rows.append(_own_row(path, table))
            continue
        entry = serving.get(str(table.get("name", path.stem)))
        for variant in table.get("variants") or [""]:
            name, title, folder = (
                str(table.get(key, path.stem)).replace("{variant}", str(variant)) for key in ("name", "title", "folder")
            )
            place = dataset() / folder
            filled = place.is_dir() and any(not p.name.startswith(".") for p in place.iterdir())
            found = folder_state(place)
            if entry and entry_state(entry) != "absent":
                found = entry_state(entry)
            if is_miniature(place) or (table.get("counts") and is_marked(place)):
                found = "miniature"
            here = "present" if found == "absent" and filled else found
            about = (
                entry_row(entry) if entry else dict.fromkeys(("bytes", "from", "licence", "terms"), "") | {"size": None}
            )
            keys = ("bytes", "from", "licence", "size", "terms")
            row = {"name": name, "state": here} | {key: about[key] for key in keys} | {"title": title}
            rows.append(row | {"folder": f"dataset/{folder}", "entry": entry.name if entry else ""})
    return rows


def _own_row(path: Path, table: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a person's own file as a benchmark."""
    file = home() / Path(str(table["file"])).expanduser()
    here = exists(file) or exists(str(file).rpartition(":")[0])
    empty = dict.fromkeys(("bytes", "from", "licence", "terms", "entry"), "") | {"size": None}
    about = {"name": path.stem, "state": "present" if here else "absent", "title": str(table.get("title", path.stem))}
    order = ("name", "state", "title", "folder", "bytes", "from", "licence", "size", "terms", "entry")
    row = {**empty, **about, "folder": str(table["file"]), "from": "own file"}
    return {key: row[key] for key in order}


def _suites(what: What) -> list[dict[str, Any]]:
    from vlm.eval.suites import suites

    return [{"name": n, "title": s.title, "benchmarks": ", ".join(s.benchmarks)} for n, s in suites().items()]


def _models(what: What) -> list[dict[str, Any]]:
    """Return one row for each model that is here; the default is the one that `vlm use` chose, or the only one."""
    models = local_models()
    chosen = chosen_model() or (models[0].folder if len(models) == 1 else None)
    if chosen is not None and chosen not in [m.folder for m in models]:
        models.append(LocalModel(chosen))
    return [
        {"name": short_name(m, models), "default": "yes" if m.folder == chosen else "", "folder": m.place}
        for m in models
    ]


def _recipes(what: What) -> list[dict[str, Any]]:
    return [
        {"name": name, "title": str((load_yaml(path) or {}).get("title", ""))}
        for name, path in package_tables("vlm.train", "recipes").items()
        if not name.endswith("-base")
    ]
