"""One JSON line a step, a progress bar for people, and the ledger of samples not used as they are."""

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Log:
    """Append-only JSONL that can be cut back to a checkpoint: lines after its step never happened."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def cut(self, steps: int) -> None:
        """Keep the lines of steps before `steps`."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] < steps]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_bytes(b"".join(kept))
        temporary.replace(self.path)

    def write(self, **values: Any) -> None:
        """Append a line."""
        with self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(values, ensure_ascii=False) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All lines."""
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]


class Ledger:
    """Every sample that was not used as it is: (step, id, what, reason). The counts close: in = used + dropped."""

    def __init__(self, folder: Path, counts: dict[str, int] | None = None, *, writes: bool = True):
        self.log, self.writes = Log(folder / "ledger.jsonl"), writes
        self.counts = counts or {"in": 0, "used": 0, "dropped": 0, "truncated": 0}

    def add(self, step: int, n_samples: int, lost: list[tuple[str, str, str]]) -> None:
        """Account for the samples of a step; truncated ones are used, and named. All ranks count, one writes."""
        dropped = sum(what == "dropped" for _, what, _ in lost)
        self.counts["in"] += n_samples
        self.counts["dropped"] += dropped
        self.counts["truncated"] += len(lost) - dropped
        self.counts["used"] += n_samples - dropped
        for id, what, reason in lost if self.writes else []:
            self.log.write(step=step, id=id, what=what, reason=reason)


class Show:
    """Progress on the terminal; nothing when `quiet` or on other ranks."""

    def __init__(self, title: str, total: int, visible: bool):
        self.started = time.monotonic()
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not visible,
        )
        self.task = self.progress.add_task(title, total=total, note="")

    def __enter__(self) -> "Show":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, step: int, note: str) -> None:
        """Steps done and what to say beside the bar."""
        self.progress.update(self.task, completed=step, note=note)
