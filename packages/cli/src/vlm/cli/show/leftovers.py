"""Tables of what takes up the disk, and what of it may go."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Column, Table

from vlm.cli.show.screen import Screen
from vlm.core.home import free_gb
from vlm.core.progress import human_bytes

if TYPE_CHECKING:
    from vlm.cli.clean import Found


def show_leftovers(found: "Found", root: Path) -> None:
    """Show the bytes of each place below the home, then what may go, each by its path below the home."""
    console = Screen()
    console.print(f"{root}: {use_of(found.used)}; {free_gb(root):,.0f} GB free", soft_wrap=True)
    if found.leftovers:
        table = Table("kind", Column("size", justify="right", no_wrap=True), Column("path", overflow="fold"))
        index = [left for left in found.leftovers if left.kind == "index"]
        if index:  # one for each file of records that was ever read
            table.add_row("index", human_bytes(sum(left.size for left in index)), f".index: {len(index):,} files")
        for left in found.leftovers:
            if left.kind != "index":
                table.add_row(left.kind, human_bytes(left.size), str(left.path.relative_to(root)))
        console.print(table)


def use_of(used: dict[str, int], whole: bool = True) -> str:
    """Return the bytes of each place as one line: `pretrained 4.1 GB, runs 120.0 MB`."""
    more = "" if whole else " or more"
    return ", ".join(f"{place} {human_bytes(size)}" for place, size in used.items()) + more if used else "nothing yet"
