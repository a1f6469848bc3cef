"""A catalogue entry on the terminal: its size, and its row in a list."""

from typing import Any

from vlm.core.fetch.catalogue import Entry, HubSource, ManualSource
from vlm.core.fetch.installed import entry_state
from vlm.core.progress import human_bytes


def human_size(entry: Entry) -> str:
    """Return the size as text: `about 4.4 GB`; `?` when unknown."""
    return human_bytes(entry.size) if entry.size_is == "exact" else f"{entry.size_is} {human_bytes(entry.size)}"


def entry_row(entry: Entry) -> dict[str, Any]:
    """Return the columns of an entry; the keys are those of `vlm list --json`."""
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
    """Return the kind of a source; a hub repository without a pinned commit is marked."""
    if isinstance(source, HubSource) and source.revision is None:
        return "hub, not pinned"
    return "by hand" if isinstance(source, ManualSource) else str(source.kind)
