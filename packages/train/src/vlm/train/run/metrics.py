"""One JSON line a step, a progress bar for people, and the ledger of samples not used as they are."""

import json
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vlm.core.errors import DataError


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
        """All whole lines; none where there is no file."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]


Stage = Literal["read", "media", "encode", "pack"]
"""Where a sample was lost: its record, its files, its tokens, or the limits of a pack."""


class Lost(NamedTuple):
    """A sample that is not used as it is: `name:line` of its file, what became of it, where, and why."""

    id: str
    what: Literal["dropped", "truncated"]
    stage: Stage
    reason: str


class Ledger:
    """Every sample that was not used as it is. The counts close: in = used + dropped + truncated + replaced.

    `used` are those used as they are; truncated ones are trained on too. None is ever replaced: the 0 says so.
    """

    def __init__(self, folder: Path, counts: dict[str, int] | None = None, *, writes: bool = True):
        self.log, self.writes = Log(folder / "ledger.jsonl"), writes
        self.counts = dict.fromkeys(("in", "used", "dropped", "truncated", "replaced"), 0) | (counts or {})

    def add(self, step: int, n_samples: int, lost: list[Lost]) -> None:
        """Account for the samples of a step. All ranks count, one writes."""
        self.counts["in"] += n_samples
        self.counts["used"] += n_samples - len(lost)
        for one in lost:
            self.counts[one.what] += 1
            if self.writes:
                self.log.write(step=step, **one._asdict())


@dataclass(frozen=True)
class Account:
    """The ledger of one stage of training, checked against its metrics. `reasons`: (what, stage, reason) -> samples;
    `open` says where the counts do not close, empty if they do."""

    recipe: str
    steps: int
    counts: dict[str, int]
    reasons: dict[tuple[str, str, str], int]
    entries: list[dict[str, Any]]
    open: list[str]


def read_account(folder: Path) -> Account:
    """The account of a stage (`RUN/train/RECIPE`), finished or not.

    What came in is counted from the steps and the recipe, what was trained on from metrics.jsonl, what was lost from
    ledger.jsonl; the three must agree, and with summary.json once that is there.

    Raises:
        DataError: no run in that folder.
    """
    if not (folder / "recipe.json").exists():
        raise DataError(
            f"no training run in {folder}", expected="a folder with recipe.json", fix="name RUN/train/RECIPE"
        )
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["recipe"]
    steps, entries = Log(folder / "metrics.jsonl").read(), Log(folder / "ledger.jsonl").read()
    done = max((line["step"] + 1 for line in [*steps, *entries]), default=0)
    what = Counter(e["what"] for e in entries)
    trained = sum(line["samples"] for line in steps)
    counts = {
        "in": done * recipe["batch"]["samples"],
        "used": trained - what["truncated"],
        **{k: what[k] for k in ("dropped", "truncated", "replaced")},
    }
    problems = []
    if counts["in"] != sum(counts.values()) - counts["in"]:
        problems.append("in is not used + dropped + truncated + replaced")
    summary = folder / "summary.json"
    if summary.exists():
        final = json.loads(summary.read_text(encoding="utf-8"))["ledger"]
        differ = [k for k in ("in", "dropped", "truncated") if final[k] != counts[k]]
        problems += [f"summary.json says {k} {final[k]}, the logs say {counts[k]}" for k in differ]
    reasons = Counter((e["what"], e.get("stage", ""), short(e["reason"], e["id"])) for e in entries)
    return Account(recipe["name"], done, counts, dict(reasons.most_common()), entries, problems)


def short(reason: str, id: str) -> str:
    """The first line of a reason without names, lines and paths, so that equal faults count as one."""
    line = re.sub(r"^\S+\.jsonl:\d+: ", "", reason.splitlines()[0]).replace(id, "")
    return re.sub(r"(/[^\s:]+)+", "FILE", line)


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
