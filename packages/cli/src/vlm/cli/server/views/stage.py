"""One training stage as its files say: steps so far, curves, speed, time left, ledger.

stage = StageLog(Path("runs/mine/train/mine"))
stage.look()                         # reads what is new
stage.head()["step"], stage.curves(400)["loss"]
"""

import math
import time
from array import array
from collections import Counter
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, TypedDict

import numpy as np

from vlm.cli.server.views.holder import Holder, holder_of
from vlm.cli.server.views.tail import Tail, object_of, read_small, stamp_of

MEASURED = ("step", "loss", "lr", "tokens_per_s", "seconds", "memory_gb", "data_wait_s", "grad_norm")
"""Numbers kept of each line; NaN where it has none."""

COLUMNS = (*MEASURED, "smooth", "weight")
"""And the loss smoothed as below, with the weight behind it."""

SMOOTHING = 0.95
"""Share of the past in the smoothed loss: an exponential mean, corrected for its start (Kingma and Ba 2015)."""

RECENT = 50
"""Steps whose median gives speed and time left."""

Curve = list[list[float]]
"""[[step, value], …]."""


class StageHead(TypedDict):
    """A stage in the list. Times in seconds; None where nothing is known. `read`: share of its lines read so far."""

    id: str
    run: str
    name: str
    state: str
    holder: str
    step: int
    steps: int | None
    loss: float | None
    tokens_per_s: float | None
    memory_gb: float | None
    left: float | None
    age: float | None
    damaged: int
    read: float


class LedgerView(TypedDict):
    """Samples in, used, dropped, truncated so far; `closes`: they add up; `reasons`: [what, reason, samples]."""

    counts: dict[str, int]
    closes: bool
    reasons: list[tuple[str, str, int]]


class StageLog:
    """The numbers of a stage, read line by line as they are written. `look` may be called by any thread."""

    def __init__(self, folder: Path, id_: str = ""):
        self.folder, self.id = folder, id_
        self._lock = Lock()
        self._metrics, self._ledger = Tail(folder / "metrics.jsonl"), Tail(folder / "ledger.jsonl")
        self._recipe_stamp, self._recipe = stamp_of(Path()), dict[str, Any]()
        self._clear()
        self._clear_ledger()

    def _clear(self) -> None:
        self.columns = {name: array("d") for name in COLUMNS}
        self.samples = array("d")
        self.damaged = 0

    def _clear_ledger(self) -> None:
        self.lost: Counter[tuple[str, str]] = Counter()
        self.ledger_damaged = 0
        self.last_lost = -1

    def look(self, seconds: float = 1.0) -> "StageLog":
        """Read what is new, for that long at most, and return the stage; the next look reads on."""
        until = time.monotonic() + seconds
        with self._lock:
            self._look_recipe()
            anew, lines = self._metrics.read()
            if anew:
                self._clear()
            for count, line in enumerate(lines):
                self._add(object_of(line))
                if count % 1000 == 999 and time.monotonic() > until:
                    break
            anew, lines = self._ledger.read()
            if anew:
                self._clear_ledger()
            for line in lines:
                self._add_lost(object_of(line))
        return self

    def _look_recipe(self) -> None:
        path = self.folder / "recipe.json"
        if (now := stamp_of(path)) != self._recipe_stamp:
            self._recipe_stamp, self._recipe = now, read_small(path)

    def _add(self, line: dict[str, Any] | None) -> None:
        step = number(line.get("step")) if line else None
        if line is None or step is None or step < 0 or step != int(step):
            self.damaged += 1
            return
        steps = self.columns["step"]
        while steps and steps[-1] >= step:  # taken again: the later line counts
            for column in (*self.columns.values(), self.samples):
                column.pop()
        values = {name: number(line.get(name)) for name in MEASURED}
        if values["memory_gb"] is None:
            values["memory_gb"] = number(line.get("rss_gb"))
        smooth, weight = self._smoothed(values["loss"])
        for name, value in values.items():
            self.columns[name].append(math.nan if value is None else value)
        self.columns["smooth"].append(smooth)
        self.columns["weight"].append(weight)
        self.samples.append(number(line.get("samples")) or 0)

    def _smoothed(self, loss: float | None) -> tuple[float, float]:
        """Return the smoothed loss after this one and the weight behind it; without a loss those before."""
        past, weight = self.columns["smooth"], self.columns["weight"]
        before, held = (past[-1], weight[-1]) if past else (0.0, 0.0)
        if loss is None:
            return (before, held) if held else (math.nan, 0.0)
        now = SMOOTHING * held + (1 - SMOOTHING)
        return (SMOOTHING * held * (before if held else 0.0) + (1 - SMOOTHING) * loss) / now, now

    def _add_lost(self, line: dict[str, Any] | None) -> None:
        if line is None or not isinstance(line.get("what"), str):
            self.ledger_damaged += 1
            return
        from vlm.train.run.metrics import short

        reason = str(line.get("reason") or "no reason")
        self.lost[line["what"], short(reason, str(line.get("id") or "\0"))] += 1
        if line["what"] != "unseen":
            self.last_lost = max(self.last_lost, int(number(line.get("step")) or 0))

    def head(self) -> StageHead:
        """Return the row of the list."""
        loss, recent = self.columns["smooth"], self._recent
        step, steps, holder = self._done, self.planned(), holder_of(self.folder)
        pace = recent("seconds") and (recent("seconds") or 0) + (recent("data_wait_s") or 0)
        done = (self.folder / "summary.json").exists() and not holder.alive
        written = self._metrics.stamp.time / 1e9
        state = "finished" if done else self._state(holder, time.time() - written, pace or 0)
        return {
            "id": self.id,
            "run": self.id.split("/")[0],
            "name": self.folder.name,
            "state": state,
            "holder": holder.said,
            "step": step,
            "steps": steps,
            "loss": _last(loss),
            "tokens_per_s": recent("tokens_per_s"),
            "memory_gb": _last(self.columns["memory_gb"]),
            "left": max(0, steps - step) * pace if steps and pace and state == "running" else None,
            "age": time.time() - written if written else None,
            "damaged": self.damaged + self.ledger_damaged,
            "read": 1 - self._metrics.left / max(1, self._metrics.stamp.size),
        }

    def _state(self, holder: Holder, age: float, pace: float) -> str:
        if holder.alive:
            return "running" if age < max(120, 20 * pace) or not self.columns["step"] else "silent"
        return "killed" if holder.said else "stopped"

    @property
    def _done(self) -> int:
        steps = self.columns["step"]
        return int(steps[-1]) + 1 if steps else 0

    def _recent(self, name: str) -> float | None:
        values = [value for value in self.columns[name][-RECENT:] if not math.isnan(value)]
        return float(np.median(values)) if values else None

    def planned(self) -> int | None:
        """Return the steps of the whole run; None where recipe.json does not say."""
        recipe = self._recipe.get("recipe")
        if not isinstance(recipe, dict):
            return None
        if steps := number(recipe.get("steps")):
            return int(steps)
        try:
            lines, total = self._recipe["lines"], 0
            for entry in recipe["data"]:
                repeat, count = float(entry["repeat"]), int(lines[entry["file"]])
                total += int(repeat) * count + round((repeat - int(repeat)) * count)
            return max(1, int(recipe["epochs"] * total / recipe["batch"]["samples"]))
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return None

    def ledger(self) -> LedgerView:
        """Return the ledger of samples so far: what came in is counted from the steps and the recipe."""
        done, what = max(self._done, self.last_lost + 1), Counter[str]()
        for (kind, _), n in self.lost.items():
            what[kind] += n
        counts = {"used": int(sum(self.samples)) - what["truncated"]}
        counts |= {kind: what[kind] for kind in ("dropped", "truncated", "replaced")}
        taken = samples_taken(self._recipe, done)
        if taken is None and isinstance(said := read_small(self.folder / "summary.json").get("ledger"), dict):
            counts = {kind: int(number(said.get(kind)) or 0) for kind in counts}
            taken = int(number(said.get("in")) or 0)
        all_in = sum(counts.values()) if taken is None else taken
        reasons = [(kind, why, n) for (kind, why), n in self.lost.most_common(20)]
        return {"counts": {"in": all_in, **counts}, "closes": all_in == sum(counts.values()), "reasons": reasons}

    def curves(self, points: int) -> dict[str, Curve]:
        """Return each column against the step, thinned to about that many points; extremes are kept."""
        with self._lock:
            columns = {name: np.array(column) for name, column in self.columns.items()}
        x, _ = columns.pop("step"), columns.pop("weight")
        return {name: thinned(x, y, points) for name, y in columns.items()}


def samples_taken(record: dict[str, Any], done: int) -> int | None:
    """Return the samples that the first `done` steps took, as recipe.json says; None where it does not."""
    try:
        sizes = [(int(part["steps"]), int(part["recipe"]["batch"]["samples"])) for part in record.get("earlier", ())]
        last = int(record["recipe"]["batch"]["samples"])
    except (KeyError, TypeError, ValueError):
        return None
    total = begin = 0
    for end, size in sizes:
        total += max(0, min(end, done) - begin) * size
        begin = max(begin, min(end, done))
    return total + (done - begin) * last


def thinned(x: "np.ndarray", y: "np.ndarray", points: int) -> Curve:
    """Return the finite points; of many the lowest and the highest of each of `points` / 2 stretches."""
    good = np.isfinite(y)
    x, y = x[good], y[good]
    if len(x) > points:
        edges = np.linspace(0, len(x), max(2, points // 2) + 1).astype(int)
        kept = [0, len(x) - 1]
        for begin, end in pairwise(edges):
            part = y[begin:end]
            kept += [begin + int(part.argmin()), begin + int(part.argmax())]
        chosen = np.unique(kept)
        x, y = x[chosen], y[chosen]
    return np.stack([x, y], axis=1).tolist() if len(x) else []


def number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    if type(value) is float:  # nearly always: a million lines have eight each
        return value if math.isfinite(value) else None
    good = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return float(value) if good and math.isfinite(value) else None
    except OverflowError:
        return None


def _last(column: "array[float]") -> float | None:
    return column[-1] if column and not math.isnan(column[-1]) else None
