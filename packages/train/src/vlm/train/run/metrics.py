"""One JSON line for each step, a progress bar, and the ledger of samples that are not used as they are."""

import json
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vlm.core.errors import DataError
from vlm.core.home import read_json, write_atomic


class Log:
    """Append-only JSONL that can be cut back to a checkpoint: lines of later steps are removed."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def cut(self, steps: int) -> None:
        """Keep the lines of steps before `steps`."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] < steps]
        write_atomic(self.path, b"".join(kept))

    def write(self, **values: Any) -> None:
        """Append a line of these keys and values."""
        with self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(values, ensure_ascii=False) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Return all whole lines; none where there is no file."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]


Stage = Literal["read", "media", "encode", "pack"]
"""Where a sample was lost: its record, its files, its tokens, or the limits of a pack."""


class Lost(NamedTuple):
    """A sample that is not used as it is: `name:line` of its file, what happened to it, where, and why."""

    id: str
    what: Literal["dropped", "truncated"]
    stage: Stage
    reason: str


class LostLine(TypedDict):
    """One line of ledger.jsonl: a `Lost` sample and its step."""

    step: int
    id: str
    what: Literal["dropped", "truncated"]
    stage: Stage
    reason: str


class Ledger:
    """Every sample that was not used as it is. The counts add up: in = used + dropped + truncated + replaced.

    `used` are those used as they are; truncated ones are trained on too. None is ever replaced, so that count is 0.
    """

    def __init__(self, folder: Path, counts: dict[str, int] | None = None, *, writes: bool = True):
        self.log, self.writes = Log(folder / "ledger.jsonl"), writes
        self.counts = dict.fromkeys(("in", "used", "dropped", "truncated", "replaced"), 0) | (counts or {})

    def add(self, step: int, n_samples: int, lost: list[Lost]) -> None:
        """Count the samples of a step. All ranks count, one writes."""
        self.counts["in"] += n_samples
        self.counts["used"] += n_samples - len(lost)
        for one in lost:
            self.counts[one.what] += 1
            if self.writes:
                self.log.write(step=step, **one._asdict())


@dataclass(frozen=True)
class Account:
    """Ledger of one stage of training, checked against its metrics.

    `reasons`: (what, stage, reason) -> samples; `open` says where the counts do not add up, empty if they do.
    """

    recipe: str
    steps: int
    counts: dict[str, int]
    reasons: dict[tuple[str, str, str], int]
    entries: list[LostLine]
    open: list[str]


def read_account(folder: Path) -> Account:
    """Read the account of a stage (`RUN/train/RECIPE`), finished or not.

    >>> read_account(Path("runs/quickstart/train/quickstart-v2pe-sft")).counts["dropped"]     # doctest: +SKIP
    0

    Samples that came in are counted from the steps and the recipe, those trained on from metrics.jsonl, those lost from
    ledger.jsonl; the three must agree, also with summary.json once that exists.

    Raises:
        DataError: no run in that folder.
    """
    if not (folder / "recipe.json").exists():
        raise DataError(
            f"no training run in {folder}", expected="a folder with recipe.json", fix="name RUN/train/RECIPE"
        )
    recipe = read_json(folder / "recipe.json")["recipe"]
    steps = Log(folder / "metrics.jsonl").read()
    entries: list[LostLine] = Log(folder / "ledger.jsonl").read()  # type: ignore[assignment]  # as Ledger wrote it
    done = max((line["step"] + 1 for line in [*steps, *entries]), default=0)
    what = Counter(str(e["what"]) for e in entries)
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
        final = read_json(summary)["ledger"]
        differ = [k for k in ("in", "dropped", "truncated") if final[k] != counts[k]]
        problems += [f"summary.json says {k} {final[k]}, the logs say {counts[k]}" for k in differ]
    reasons = Counter((e["what"], e.get("stage", ""), short(e["reason"], e["id"])) for e in entries)
    return Account(recipe["name"], done, counts, dict(reasons.most_common()), entries, problems)


def short(reason: str, id: str) -> str:
    """Return the first line of a reason without names, lines and paths, so that equal faults count as one."""
    line = re.sub(r"^\S+\.jsonl:\d+: ", "", reason.splitlines()[0]).replace(id, "")
    return re.sub(r"(/[^\s:]+)+", "FILE", line)


class ProgressBar:
    """Progress of a stage on the terminal (standard error); nothing unless `visible`."""

    def __init__(self, title: str, total: int, visible: bool):
        self.started = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
            disable=not visible,
        )
        self.task = self.progress.add_task(title, total=total, note="")

    def __enter__(self) -> "ProgressBar":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, step: int, note: str) -> None:
        """Show the number of steps done, and a note beside the bar."""
        self.progress.update(self.task, completed=step, note=note)
