"""What trainings and evaluations do, read from their files alone, so that it works on any machine that sees the disk.

for folder in find_work(runs()):
    state = read_work(folder)
    print(state.name, state.status, state.done, state.total)
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from vlm.core.errors import DataError, VlmError
from vlm.core.home import home, read_json, runs
from vlm.core.progress import BEACON
from vlm.core.text import printable

SKIPPED = {
    "checkpoints",
    "model",
    "adapter",
    "logs",
    "report",
    "benchmarks",
    "tensorboard",
    "wandb",
    "shards",
    "images",
}
"""Folders below a run in which no work is looked for."""

SILENT = 120.0
"""Seconds without a sign of life after which work no longer counts as running: its file is written every ten."""

RECENT = 20
"""Steps over which loss and speed are averaged."""

Status = Literal["running", "silent", "stopped", "failed", "finished"]


@dataclass
class WorkState:
    """The state of one training or evaluation.

    Attributes:
        kind: `training` or `evaluation`.
        name: Its folder below runs/.
        folder: Its folder.
        status: `running`: its process gives signs of life. `silent`: it gave none for SILENT seconds without an end;
            it was killed, or its machine is down. `stopped`: it ended on request. `failed`: by an error.
        done: Steps or items.
        total: Of them in all; None while unknown.
        left: Seconds that are left.
        age: Seconds since the last sign of life.
        moved: Seconds since the last step or batch.
        values: Numbers to show: loss, loss_mean, lr, tokens_per_s, step_s, data_wait_s, memory_gb, score.
        ledger: What became of the samples, or outcomes of the items.
        where: The model or the results of finished work.
        why: The error of failed work, or what cannot be read.
        host: The machine it ran on last.
    """

    kind: str
    name: str
    folder: Path
    status: Status
    done: int = 0
    total: int | None = None
    left: float | None = None
    age: float = 0.0
    moved: float = 0.0
    values: dict[str, float] = field(default_factory=dict)
    ledger: dict[str, int] = field(default_factory=dict)
    where: str = ""
    why: str = ""
    host: str = ""


def find_work(top: Path) -> Iterator[Path]:
    """Yield the folders of trainings and evaluations at or below a folder, in the order of their names."""
    for place, names, files in os.walk(top):
        if is_work(set(files)) or "shards" in names:
            yield Path(place)
        skipped = () if Path(place) == runs() else SKIPPED  # a run may have any name
        names[:] = sorted(name for name in names if name not in skipped and not name.startswith("."))


def is_work(files: set[str]) -> bool:
    """Return whether a folder with these files is that of a training or an evaluation."""
    return bool(files & {"metrics.jsonl", "outcomes.jsonl", BEACON}) or {"summary.json", "results.jsonl"} <= files


def read_work(folder: Path, now: float | None = None) -> WorkState:
    """Return the state of the training or evaluation in a folder; what cannot be read is said in `why`."""
    now = time.time() if now is None else now
    trains = any((folder / name).exists() for name in ("metrics.jsonl", "recipe.json", "ledger.jsonl"))
    place = folder.relative_to(runs()).as_posix() if folder.is_relative_to(runs()) else str(folder)
    state = WorkState("training" if trains else "evaluation", place, folder, "stopped")
    parts = [folder] if trains else [folder, *sorted(folder.glob("shards/*"))]
    try:
        for part in [folder] if (folder / BEACON).exists() else parts:  # who gathers shards counts their items too
            add_beacon(state, part, now)
        add_training(state, now) if trains else add_evaluation(state, parts)
    except VlmError as error:
        state.why = state.why or printable(error.found)
    if state.total and state.status == "finished" and trains:
        state.done = state.total
    return state


def add_beacon(state: WorkState, part: Path, now: float) -> None:
    """Add what the progress file of a folder says: of shards the sums, and the liveliest status."""
    file = part / BEACON
    if not file.exists():
        return
    said = read_json(file)
    if not isinstance(said, dict):
        raise DataError(f"{file} holds no object")
    age = max(0.0, now - file.stat().st_mtime)
    ended = said.get("ended")
    status: Status = ended if ended in ("stopped", "failed", "finished") else "silent" if age > SILENT else "running"
    first = not state.host
    order = ("running", "silent", "failed", "stopped", "finished")
    state.status = status if first else min(state.status, status, key=order.index)
    state.age = age if first else min(state.age, age)
    moved = age + max(0.0, file.stat().st_mtime - number(said, "moved", file.stat().st_mtime))
    state.moved = moved if first else min(state.moved, moved)
    state.done += int(number(said, "done", 0))
    state.total = (state.total or 0) + int(number(said, "total", 0)) or None
    if status == "running" and said.get("left") is not None:
        state.left = max(state.left or 0.0, number(said, "left", 0) - age)
    state.why = state.why or (printable(said.get("why", "")) if status == "failed" else "")
    state.host = printable(said.get("host", "?"))


def number(said: dict[str, Any], key: str, default: float) -> float:
    """Return a number of a file; the default where there is none."""
    value = said.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else default


def add_training(state: WorkState, now: float) -> None:
    """Add the latest steps, the ledger, and whether the model is there."""
    folder = state.folder
    if (folder / "model/config.json").exists():
        if state.status != "running":
            state.status = "finished"
        state.where = shown_place(folder / "model")
    file = folder / "metrics.jsonl"
    if file.exists():
        moved = max(0.0, now - file.stat().st_mtime)
        if not state.host:  # of a version without a progress file
            state.age = state.moved = moved
            if state.status != "finished":
                state.status = "silent" if moved > SILENT else "running"
        steps = latest_steps(file)
        if steps:
            state.done = max(state.done, int(steps[-1]["step"]) + 1)
            state.values = step_values(steps)
    if (folder / "recipe.json").exists():
        signature = tuple(stamp(folder / name) for name in ("recipe.json", "metrics.jsonl", "ledger.jsonl"))
        state.ledger = dict(account(folder, signature))
        if state.total is None and state.status == "finished":
            state.total = state.done


def latest_steps(file: Path) -> list[dict[str, Any]]:
    """Return the last lines of metrics.jsonl, from the end of the file: a long run has many."""
    from vlm.train.run.metrics import content_of

    with file.open("rb") as f:
        size = f.seek(0, os.SEEK_END)
        f.seek(max(0, size - (1 << 16)))
        lines = f.read().split(b"\n")
    whole = lines[1:-1] if size > 1 << 16 else lines[:-1]
    return [found for line in whole if (found := content_of(line)) is not None][-RECENT:]


def step_values(steps: list[dict[str, Any]]) -> dict[str, float]:
    """Return the numbers of the last step, and means over the last ones."""
    last = steps[-1]
    values: dict[str, float] = {key: number(last, key, 0) for key in ("loss", "lr", "memory_gb") if key in last}
    means = {"loss_mean": "loss", "tokens_per_s": "tokens_per_s", "step_s": "seconds", "data_wait_s": "data_wait_s"}
    for name, key in means.items():
        found = [number(step, key, 0) for step in steps if key in step]
        if found:
            values[name] = fmean(found)
    return values


@lru_cache(maxsize=256)
def account(folder: Path, signature: tuple[Any, ...]) -> tuple[tuple[str, int], ...]:
    """Return the counts of a stage's ledger; read again only when the `signature` of its files changes."""
    from vlm.train.run.metrics import read_account

    return tuple(read_account(folder).counts.items())


def stamp(file: Path) -> tuple[int, int]:
    """Return what changes when a file does; (0, 0) without one."""
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def add_evaluation(state: WorkState, parts: list[Path]) -> None:
    """Add outcomes and score: of a finished evaluation from its summary, else of the answers so far."""
    folder = state.folder
    logs = [part / "outcomes.jsonl" for part in parts if (part / "outcomes.jsonl").exists()]
    if (folder / "summary.json").exists() and state.status not in ("running", "silent", "failed"):
        said = read_json(folder / "summary.json")
        try:
            state.ledger = {str(kind): int(n) for kind, n in said["outcomes"].items()}
            value = said["metrics"][0]["value"]
            state.total = state.done = sum(state.ledger.values())
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"{folder / 'summary.json'} is damaged: it lacks {error}") from error
        state.values = {} if value is None else {"score": float(value)}
        state.status, state.where = "finished", shown_place(folder)
        return
    if state.status == "finished":
        state.status = "stopped"  # this worker has done its share; the results wait for others
        state.why = "its results are not written yet"
    state.ledger = dict(outcomes(tuple(logs), tuple(map(stamp, logs))))
    scores = [read_json(part / BEACON).get("values", {}).get("score") for part in parts if (part / BEACON).exists()]
    if known := [float(score) for score in scores if isinstance(score, (int, float))]:
        state.values = {"score": fmean(known)}


@lru_cache(maxsize=256)
def outcomes(logs: tuple[Path, ...], signature: tuple[Any, ...]) -> tuple[tuple[str, int], ...]:
    """Return how many items had each outcome; read again only when the `signature` of the logs changes."""
    from vlm.eval.run.outcomes import read_outcomes

    found = Counter(outcome.outcome for outcome in read_outcomes(logs).values())
    return tuple((str(kind), n) for kind, n in sorted(found.items()))


def shown_place(folder: Path) -> str:
    """Return a folder as it is typed: relative to the home where it lies there."""
    return folder.relative_to(home()).as_posix() if folder.is_relative_to(home()) else str(folder)


def as_json(state: WorkState) -> dict[str, Any]:
    """Return a state for JSON."""
    return {**asdict(state), "folder": str(state.folder)}
