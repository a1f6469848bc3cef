"""One page for each benchmark table: what is asked, how it is scored, what was published."""

from typing import Any

from markdown_pieces import code, escape, literal, table

from vlm.core.config import load_yaml, package_tables


def pages() -> dict[str, str]:
    """Return an overview and one page for each shipped benchmark."""
    benchmarks = {stem: load_yaml(path) for stem, path in package_tables("vlm.eval", "benchmarks").items()}
    rows = [
        (f"[`{stem}`]({stem}.md)", title(entry), code(entry["loader"]), scorers(entry))
        for stem, entry in benchmarks.items()
    ]
    overview = "# Benchmarks\n\nHow to run, resume and score them: [evaluation](../../evaluation.md).\n\n"
    made = {"reference/benchmarks/index.md": overview + table(("benchmark", "title", "loader", "scorers"), rows)}
    return made | {f"reference/benchmarks/{stem}.md": page(stem, entry) for stem, entry in benchmarks.items()}


def title(entry: dict[str, Any]) -> str:
    """Return the title of a table, with the names of its variants."""
    return escape(entry["title"].replace("{variant}", "/".join(map(str, entry.get("variants", [])))))


def scorers(entry: dict[str, Any]) -> str:
    """Return the scorers that a table names, each once."""
    own = [family["scorer"] for family in entry.get("families", {}).values() if "scorer" in family]
    named = entry["scorer"]
    return ", ".join(map(code, dict.fromkeys([*(named.values() if isinstance(named, dict) else [named]), *own])))


def page(stem: str, entry: dict[str, Any]) -> str:
    """Return the page of one benchmark table."""
    name = f"{stem}-{entry['variants'][0]}" if entry.get("variants") else stem
    generation = entry["generation"]
    rows = [
        ("files", code(f"dataset/{entry['folder']}")),
        ("variants", ", ".join(map(code, entry.get("variants", [])))),
        ("loader", code(entry["loader"])),
        ("scorers", scorers(entry)),
        ("score of the set", code(entry["aggregate"])),
        ("new tokens", escape(f"at most {generation['max_new_tokens']} ({generation['source']})")),
    ]
    text = [
        f"# {title(entry)}\n",
        f"```sh\nvlm download --benchmark {name}\nvlm eval {name} --model FOLDER\nvlm eval {name} --mini\n```\n",
        table(("about", "value"), [row for row in rows if row[1]]),
    ]
    if counts := entry.get("counts"):
        least = ", at least" if counts.get("at_least") else ""
        text += [
            f"## Items\n\nSource: {escape(counts['source'])}.\n",
            table(("group", f"items{least}"), [(code(group), f"{n:,}") for group, n in counts["groups"].items()]),
        ]
    if prompt := entry.get("prompt"):
        text += [
            f"## Prompt\n\nSource: {escape(entry['prompt_source'])}.\n",
            table(("piece", "text"), [(code(key), literal(value)) for key, value in prompt.items()]),
        ]
    if published := entry.get("published"):
        text += [
            "## Published scores\n",
            table(
                ("system", "metric", "variant", "value", "source"),
                [
                    (escape(p["system"]), escape(p["metric"]), p.get("variant"), p["value"], escape(p["source"]))
                    for p in published
                ],
            ),
        ]
    if notes := entry.get("notes"):
        text.append("## Notes\n\n" + "\n".join(f"- {escape(note)}" for note in notes) + "\n")
    return "\n".join(text)
