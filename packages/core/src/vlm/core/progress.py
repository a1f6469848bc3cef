"""Progress of long work: a bar on a terminal, elsewhere a plain line now and then, and a file for other processes.

All of it goes to standard error, so that `--json` output stays clean.

    with Progress("stage1", total=700, unit="steps") as progress:
        progress.update(1, note="loss 2.31")

In a log it reads `12:30:05 stage1: 120 of 700 steps (17 %), loss 2.31, 2.1 steps/s, 4 min 36 s left`.
"""

import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypedDict

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from vlm.core.errors import Preempted
from vlm.core.home import write_json
from vlm.core.text import printable, printable_lines

SECONDS = "VLM_PROGRESS_SECONDS"
"""Environment variable: the seconds between two plain lines of a log, by default 30."""

BEAT = 10.0
"""Seconds between two signs of life in the file of a `Beacon`."""

BEACON = "progress.json"
"""Name of the file of a `Beacon`, in the folder of the work."""

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


class Tempo:
    """How fast work goes, over about the last ten marks: work that was done before the first one does not count.

    >>> tempo = Tempo()
    >>> tempo.mark(120, now=0.0), tempo.mark(220, now=50.0)
    (None, None)
    >>> tempo.rate(220, now=50.0), tempo.left(220, 700, now=50.0)
    (2.0, 240.0)
    """

    def __init__(self) -> None:
        self.marks: deque[tuple[float, int]] = deque(maxlen=10)

    def mark(self, done: int, now: float) -> None:
        """Remember how much is done; less than before begins anew."""
        if self.marks and done < self.marks[-1][1]:
            self.marks.clear()
        self.marks.append((now, done))

    def rate(self, done: int, now: float) -> float | None:
        """Return units a second; None while nothing is known."""
        if not self.marks or now <= self.marks[0][0] or done <= self.marks[0][1]:
            return None
        return (done - self.marks[0][1]) / (now - self.marks[0][0])

    def left(self, done: int, total: int | None, now: float) -> float | None:
        """Return the seconds that are left; None while nothing is known."""
        rate = self.rate(done, now)
        return None if rate is None or total is None else max(0, total - done) / rate


class Progress:
    """Progress of one piece of work on standard error: a bar on a terminal, elsewhere plain lines.

    A plain line comes with an update, at most every `seconds`, and the first after that time: what is done sooner says
    nothing. Any thread may call `update`.

    Args:
        title: What is done, as the line begins.
        total: Units in all, None while unknown.
        unit: What is counted: `steps`, `items`, `files`; `B` for bytes.
        visible: Show anything at all.
        bar: Draw the bar on a terminal; a log has its lines also without it.
        seconds: Between two lines; by default $VLM_PROGRESS_SECONDS, else 30.
    """

    def __init__(
        self,
        title: str,
        total: int | None = None,
        *,
        unit: str = "B",
        visible: bool = True,
        bar: bool = True,
        seconds: float | None = None,
    ):
        self.title, self.unit, self.total = printable(title), unit, total
        terminal = is_terminal()
        self.lines = visible and not terminal
        self.seconds = line_seconds() if seconds is None else seconds
        self.tempo, self.lock = Tempo(), threading.Lock()
        self.said = time.monotonic()
        columns = (TextColumn("{task.description}", style="bold", markup=False), BarColumn())
        state = TextColumn("{task.fields[state]}", markup=False)
        self.bar = Bar(*columns, state, console=Console(stderr=True), disable=not (visible and bar and terminal))
        self.task = self.bar.add_task(self.title, total=total, state="")

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, lines: Sequence[str]) -> None:
        """Print lines above the bar, or in the log."""
        for line in lines:
            if not self.bar.disable:
                self.bar.console.print(printable_lines(line), markup=False, highlight=False, soft_wrap=True)
            elif self.lines:
                write_line(printable_lines(line))

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """Say how much is done; `total` replaces the one that was known, `note` holds more to show."""
        with self.lock:
            now = time.monotonic()
            self.total = total if total is not None else self.total
            if not self.tempo.marks:
                self.tempo.mark(done, now)
            if not self.bar.disable:
                self.bar.update(self.task, completed=done, total=self.total, state=self.state(done, note, now))
            if now - self.said >= self.seconds:
                self.said = now
                if self.lines:
                    write_line(f"{time.strftime('%H:%M:%S')} {self.title}: {self.state(done, note, now)}")
                self.tempo.mark(done, now)

    def state(self, done: int, note: str, now: float) -> str:
        """Return what a line says after its title."""
        share = f" ({done / self.total:.0%})".replace("%", " %") if self.total else ""
        parts = [f"{amount(done, self.total, self.unit)}{share}", *([note] if note else [])]
        if (rate := self.tempo.rate(done, now)) is not None:
            parts.append(speed(rate, self.unit))
            left = self.tempo.left(done, self.total, now)
            parts += [f"{duration(left)} left"] if left else []
        return ", ".join(parts)


def is_terminal() -> bool:
    """Return whether standard error is a terminal on which a bar can be drawn."""
    return sys.stderr.isatty() and not Console(stderr=True).is_dumb_terminal


def line_seconds() -> float:
    """Return the seconds between two plain lines: $VLM_PROGRESS_SECONDS where it is a number, else 30."""
    try:
        return float(os.environ.get(SECONDS, ""))
    except ValueError:
        return 30.0


def write_line(line: str) -> None:
    """Write a line to standard error; a log that is gone ends no work."""
    with suppress(OSError, ValueError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


@contextmanager
def byte_bar(description: str, *, enabled: bool = True) -> Iterator[Report]:
    """Show the bytes of a transfer, their speed and the time left, and yield its `Report`; nothing unless `enabled`.

    >>> with byte_bar("easy-vqa") as report:
    ...     report(512, 1024)
    """
    with Progress(description, visible=enabled) as progress:
        yield progress.update


Shown = Callable[[str, str], AbstractContextManager[Report]]
"""`with shown(title, unit) as report:` shows one of several pieces of work: `count_bar`, or `not_shown`."""


@contextmanager
def count_bar(title: str, unit: str) -> Iterator[Report]:
    """Show the progress of work that counts something, and yield its `Report`.

    >>> with count_bar("easy-vqa", "files") as report:
    ...     report(1, 2)
    """
    with Progress(title, unit=unit) as progress:
        yield progress.update


@contextmanager
def not_shown(title: str, unit: str) -> Iterator[Report]:
    """Show nothing: the `Shown` of work that nobody watches."""
    yield silent


class BeaconState(TypedDict):
    """The content of the file of a `Beacon`; times are seconds since 1970, `total` and `left` None while unknown.

    `ended` is None while the work goes on, then finished, stopped or failed, and `why` says more. `values` are the
    latest numbers of the work, such as its loss.
    """

    title: str
    unit: str
    done: int
    total: int | None
    left: float | None
    started: float
    moved: float
    ended: str | None
    why: str
    host: str
    pid: int
    values: dict[str, Any]


class Beacon:
    """A file that says how far work has come, written every ten seconds while its process lives.

    Whoever reads it, on any machine that sees the disk, knows how far the work is and whether it lives: a file that is
    no longer written is of a process that was killed. It is there from the first `update` on, so that work that is
    refused before leaves nothing. The folder must be held with `locked`.

    >>> with Beacon(Path("runs/a"), "a", total=700, unit="steps") as beacon:      # doctest: +SKIP
    ...     beacon.update(1, loss=2.31)
    """

    def __init__(self, folder: Path, title: str, total: int | None = None, *, unit: str, writes: bool = True):
        self.path, self.writes, self.tempo = folder / BEACON, writes, Tempo()
        now = time.time()
        self.state: BeaconState = {
            "title": title,
            "unit": unit,
            "done": 0,
            "total": total,
            "left": None,
            "started": now,
            "moved": now,
            "ended": None,
            "why": "",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "values": {},
        }
        self.over, self.lock, self.marked = threading.Event(), threading.Lock(), 0.0
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Beacon":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self.over.set()
        if self.thread.ident is not None:
            self.thread.join()
            stopped = isinstance(error, (Preempted, KeyboardInterrupt, SystemExit, GeneratorExit))
            self.state["ended"] = "finished" if error is None else "stopped" if stopped else "failed"
            self.state["why"] = "" if error is None or stopped else printable(error)
            self.write()

    def update(self, done: int, total: int | None = None, **values: Any) -> None:
        """Say how much is done, and the numbers of now."""
        with self.lock:
            now = time.time()
            self.state["total"] = total = total if total is not None else self.state["total"]
            self.state["done"], self.state["moved"] = done, now
            self.state["values"] = values
            if now - self.marked >= BEAT or not self.tempo.marks:
                self.tempo.mark(done, now)
                self.marked = now
            self.state["left"] = self.tempo.left(done, total, now)
        if self.writes and self.thread.ident is None:
            self.write()
            self.thread.start()

    def write(self) -> None:
        """Write the file now; a disk that refuses it ends no work."""
        with self.lock:
            said = dict(self.state)
        with suppress(OSError):
            write_json(self.path, said)

    def _beat(self) -> None:
        while not self.over.wait(BEAT):
            self.write()


def amount(done: int, total: int | None, unit: str) -> str:
    """Return how much of how much is done.

    >>> amount(1200, 7000, "steps"), amount(1200000, None, "B")
    ('1,200 of 7,000 steps', '1.2 MB')
    """
    if unit == "B":
        return human_bytes(done) + (f" of {human_bytes(total)}" if total else "")
    return f"{done:,}" + (f" of {total:,}" if total else "") + f" {unit}"


def speed(rate: float, unit: str) -> str:
    """Return units a second as a person reads it; slow work as seconds for each.

    >>> speed(2.0, "steps"), speed(0.25, "steps"), speed(1200000.0, "B")
    ('2.0 steps/s', '4.0 s each', '1.2 MB/s')
    """
    if unit == "B":
        return f"{human_bytes(int(rate))}/s"
    return f"{rate:,.1f} {unit}/s" if rate >= 1 else f"{1 / rate:.1f} s each"


def duration(seconds: float) -> str:
    """Return a time as a person reads it, its two largest parts.

    >>> duration(9), duration(125), duration(7325), duration(200000)
    ('9 s', '2 min 5 s', '2 h 2 min', '2 d 7 h')
    """
    whole = max(0, round(seconds))
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next((i for i, (n, _) in enumerate(parts) if n), 3)
    return " ".join(f"{n} {name}" for n, name in parts[first : first + 2] if n or first == 3)


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
