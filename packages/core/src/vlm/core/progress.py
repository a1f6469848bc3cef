"""Progress of long transfers, on standard error so that `--json` output stays clean."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

Report = Callable[[int, int | None], None]
"""`report(bytes_done, bytes_total)`; the total may be None while it is unknown."""


def silent(done: int, total: int | None) -> None:
    """A `Report` that shows nothing."""


@contextmanager
def byte_bar(description: str, *, enabled: bool = True) -> Iterator[Report]:
    """A bar with bytes, speed and time left; yields its `Report`. Nothing is drawn when stderr is not a terminal.

    >>> with byte_bar("easy-vqa") as report:
    ...     report(512, 1024)
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not (enabled and console.is_terminal)
    ) as bar:
        task = bar.add_task(description, total=None)

        def report(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield report


def human_bytes(size: int | None) -> str:
    """Bytes for people: `3.2 MB`; `?` when unknown.

    >>> human_bytes(3215672)
    '3.2 MB'
    """
    if size is None:
        return "?"
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"
