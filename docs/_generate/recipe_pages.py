"""One page for each recipe: how to run it, every setting with its source, the data, and where it differs."""

from typing import Any

from markdown_pieces import cell, code, escape, literal, table

from vlm.core.config import package_tables
from vlm.train.recipe.recipe import load_recipe

APART = {"name", "title", "data", "differences", "sources"}
"""Keys that the page shows in places of their own."""


def pages() -> dict[str, str]:
    """Return an overview and one page for each shipped recipe."""
    recipes = {
        name: load_recipe(name).model_dump(exclude_unset=True) for name in package_tables("vlm.train", "recipes")
    }
    rows = [(f"[`{name}`]({name}.md)", escape(recipe["title"])) for name, recipe in recipes.items()]
    overview = "# Recipes\n\nHow a recipe is written, resolved and verified: [recipes](../../recipes.md).\n\n"
    made = {"reference/recipes/index.md": overview + table(("recipe", "stage"), rows)}
    return made | {f"reference/recipes/{name}.md": page(name, recipe) for name, recipe in recipes.items()}


def page(name: str, recipe: dict[str, Any]) -> str:
    """Return the page of one recipe, with the settings that its file and its base give."""
    sources = recipe["sources"]
    settings = {key: value for key, value in recipe.items() if key not in APART and value is not None}
    rest = sources.get("", "")
    rows = [(code(key), literal(value), escape(source_of(key, sources))) for key, value in flat(settings)]
    data = [
        (code(entry["name"]), count(entry), entry.get("repeat", 1), entry.get("max_tiles"), code(entry["file"]))
        for entry in recipe["data"]
    ]
    text = [
        f"# {name}\n\n{escape(recipe['title'])}.\n",
        f"```sh\nvlm download --recipe {name}\nvlm train --recipe {name} --dry-run\nvlm train --recipe {name}\n```\n",
        "## Settings\n",
        f"Source, where the table names no other: {escape(rest)}.\n" if rest else "",
        table(("key", "value", "source"), rows),
        f"## Data\n\nSource: {escape(source_of('data', sources) or rest)}.\n",
        table(("set", "records", "repeat", "tiles of an image", "file"), data),
    ]
    if recipe.get("differences"):
        text.append("## Where it differs from what was published\n")
        text += map(difference_text, recipe["differences"])
    return "\n".join(text)


def difference_text(difference: dict[str, Any]) -> str:
    """Return one disagreement with the published scripts as a section."""
    lines = [f"### {code(difference['key'])}\n"]
    lines += [f"- **{key}:** {escape(cell(difference[key]))}" for key in ("ours", "published", "why")]
    if changes := difference.get("set"):
        lines.append(f"- `--published` sets {literal(changes)}")
    return "\n".join(lines) + "\n"


def count(entry: dict[str, Any]) -> str:
    """Return the number of records of a data entry; empty where the recipe names none."""
    return f"{entry['count']:,}" if entry.get("count") else ""


def flat(settings: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Return (dotted key, value) of all settings; lists stay whole."""
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        if isinstance(value, dict) and value and all(isinstance(inner, str) for inner in value):
            found += flat(value, f"{above}{key}.")
        else:
            found.append((above + str(key), value))
    return found


def source_of(key: str, sources: dict[str, str]) -> str:
    """Return the source of a key: its own, else that of the nearest key above it; empty where `""` covers it."""
    while key and key not in sources:
        key = key.rpartition(".")[0]
    return sources[key] if key else ""
