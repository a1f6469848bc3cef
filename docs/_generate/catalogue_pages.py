"""The catalogue: weights, data sets and benchmark files, with license, size and source."""

from collections import Counter
from typing import Any
from urllib.parse import urlsplit

from markdown_pieces import code, escape, table

from vlm.cli.show.catalogue import human_size
from vlm.core.fetch.catalogue import Entry, load_catalogue

KINDS = {"weights": "Weights", "data": "Training data", "benchmark": "Benchmark files"}
"""Kind of entry -> title of its page."""


def pages() -> dict[str, str]:
    """Return one page for each kind of catalogue entry."""
    entries = sorted(load_catalogue().values(), key=lambda entry: entry.name.lower())
    head = ("name and folder", "what it is", "license", "size", "source")
    made = {}
    for kind, title in KINDS.items():
        rows = [entry_row(entry) for entry in entries if entry.kind == kind]
        text = f"---\nhide: [toc]\n---\n\n# {title}\n\n"
        text += "`vlm download NAME` fetches an entry; states and steps: [data](../../data.md).\n\n"
        made[f"reference/catalogue/{kind}.md"] = text + table(head, rows)
    return made


def entry_row(entry: Entry) -> tuple[str, ...]:
    """Return one entry as a row of the table."""
    about = " ".join(escape(text.rstrip(".") + ".") for text in (entry.title, entry.notes) if text)
    terms = ": ".join(escape(text) for text in (entry.license, entry.terms) if text)
    found = Counter(source_text(source.model_dump()) for source in entry.source)
    sources = "; ".join(f"{n} files: {text}" if n > 1 else text for text, n in found.items())
    return f"{code(entry.name)}<br>{code(entry.folder)}", about, terms, human_size(entry), sources


def source_text(source: dict[str, Any]) -> str:
    """Return where a part of an entry comes from, with the pinned commit or version."""
    match source["kind"]:
        case "hub":
            revision = source["revision"]
            return f"hub {code(source['repo'])}, " + (f"commit {code(revision[:12])}" if revision else "not pinned")
        case "url":
            return code(urlsplit(source["url"]).hostname or source["url"])
        case "package":
            return f"package {code(source['name'] + ' ' + source['version'])}"
        case "built":
            return f"made by {code(source['command'])}"
        case kind:
            return "by hand" if kind == "manual" else str(kind)
