"""Progress of long transfers, on standard error so that `--json` output stays clean."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from vlm.core.text import printable

Report = Callable[[int, int | None], None]
"""`report(bytes_done, bytes_total)`; the total may be None while it is unknown."""


def silent(done: int, total: int | None) -> None:
    """Show nothing: the `Report` of a transfer that nobody watches."""


class Tally:
    """One `Report` for several transfers at once: it adds up their bytes, and their totals once all are known.

    >>> Tally(lambda done, total: print(done, total), parts=2).part(0)(10, 20)
    10 None
    """

    def __init__(self, report: Report, *, parts: int, total: int | None = None):
        self.report, self.total, self.lock = report, total, threading.Lock()
        self.done: list[int] = [0] * parts
        self.totals: list[int | None] = [None] * parts
        self.stopped = False

    def stop(self) -> None:
        """Cancel each transfer at its next report."""
        self.stopped = True

    def part(self, number: int) -> Report:
        """Return the `Report` of one transfer; any thread may call it.

        After `stop`, calling it raises `CancelledError`.
        """

        def say(done: int, total: int | None) -> None:
            if self.stopped:
                raise CancelledError
            with self.lock:
                self.done[number], self.totals[number] = done, total
                known = [t for t in self.totals if t is not None]
                self.report(sum(self.done), self.total or (sum(known) if len(known) == len(self.totals) else None))

        return say


@contextmanager
def byte_bar(description: str, *, enabled: bool = True) -> Iterator[Report]:
    """Show a bar with bytes, speed and time left, and yield its `Report`.

    Nothing is drawn when standard error is not a terminal, or without `enabled`.

    >>> with byte_bar("easy-vqa") as report:
    ...     report(512, 1024)
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not (enabled and console.is_terminal)
    ) as bar:
        task = bar.add_task(printable(description), total=None)

        def report(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield report


def bytes_below(folder: Path, suffix: str = "") -> int:
    """Return the bytes of the files below a folder whose names end in `suffix`.

    Other processes and threads may make, rename and remove files meanwhile.
    """
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            if name.endswith(suffix):
                with suppress(FileNotFoundError):
                    total += (Path(root) / name).stat().st_size
    return total


def human_bytes(size: int | None) -> str:
    """Return a number of bytes as a person reads it: `3.2 MB`, or `?` when it is unknown.

    >>> human_bytes(3215672)
    '3.2 MB'
    """
    if size is None:
        return "?"
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"
