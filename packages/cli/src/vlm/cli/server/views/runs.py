"""All runs below a folder: training stages, evaluations (finished or not) and reports, found by their files.

runs = Runs(Path("runs"))
runs.overview()["stages"][0]["step"]
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, TypedDict

from vlm.cli.server.views.holder import holder_of
from vlm.cli.server.views.stage import StageHead, StageLog, number
from vlm.cli.server.views.tail import read_small, stamp_of
from vlm.core.errors import VlmError, only_vlm_errors
from vlm.core.progress import BEACON

SKIPPED = {"checkpoints", "model", "adapter", "tensorboard", "wandb", ".judge", "shards", ".snakemake"}
"""Folders in which no run begins; some hold many files."""

LOOK_SECONDS = 2.0
"""A folder tree is walked again after this time."""

DEPTH = 12


class EvaluationHead(TypedDict):
    """An evaluation in the list. `score`: the headline metric, or the running mean in points while it runs."""

    id: str
    run: str
    benchmark: str
    title: str
    model: str
    variant: str
    state: str
    done: int | None
    total: int | None
    score: float | None
    low: float | None
    high: float | None
    metric: str
    left: float | None
    mini: bool
    damaged: str


class FoundRuns(TypedDict):
    """Paths below the folder of runs, by kind."""

    stages: list[str]
    evaluations: list[str]
    reports: list[str]


class Runs:
    """The runs below one folder. Everything is read from files, and nothing is written."""

    def __init__(self, root: Path):
        self.root = root.absolute()
        self._lock = Lock()
        self._found: FoundRuns = {"stages": [], "evaluations": [], "reports": []}
        self._looked = 0.0
        self._stages: dict[str, StageLog] = {}
        self._heads: dict[str, tuple[Any, EvaluationHead]] = {}

    def found(self) -> FoundRuns:
        """Return what there is; the tree is walked at most every two seconds."""
        with self._lock:
            if time.monotonic() - self._looked > LOOK_SECONDS or not self._looked:
                self._found = find(self.root)
                self._looked = time.monotonic()
            return self._found

    def folder(self, id_: str) -> Path | None:
        """Return the folder of a stage or evaluation that was found under this id; None for any other text."""
        found = self.found()
        return self.root / id_ if id_ in found["stages"] or id_ in found["evaluations"] else None

    def report(self, id_: str) -> Path | None:
        """Return the file of a report that was found; None for any other text."""
        return self.root / id_ if id_ in self.found()["reports"] else None

    def stage(self, id_: str) -> StageLog | None:
        """Return a stage with what is new read; None for an id that was not found."""
        if id_ not in self.found()["stages"]:
            return None
        with self._lock:
            log = self._stages.setdefault(id_, StageLog(self.root / id_, id_))
        return log.look()

    def overview(self) -> dict[str, Any]:
        """Return all heads: running ones first, then the latest."""
        found = self.found()
        stages: list[StageHead] = []
        for id_ in found["stages"]:
            with suppress(VlmError):  # a disk that does not answer, or a file that is none by now: it is left out
                stages += [log.head()] if (log := self.stage(id_)) else []
        evaluations = [self.evaluation(id_) for id_ in found["evaluations"]]
        return {
            "stages": sorted(stages, key=_latest),
            "evaluations": sorted(evaluations, key=lambda e: (e["state"] != "running", e["title"].lower(), e["model"])),
            "reports": found["reports"],
            "place": str(self.root),
        }

    def evaluation(self, id_: str) -> EvaluationHead:
        """Return the head of an evaluation."""
        folder = self.root / id_
        if (folder / "results.jsonl").exists() and (stamp := stamp_of(folder / "summary.json")).size:
            with self._lock:
                known = self._heads.get(id_)
            if known is None or known[0] != stamp:
                known = (stamp, finished_head(id_, folder))
                with self._lock:
                    self._heads[id_] = known
            return known[1]
        return unfinished_head(id_, folder)


def _latest(head: StageHead) -> tuple[bool, float]:
    return head["state"] != "running", head["age"] or 0.0


def find(root: Path) -> FoundRuns:
    """Return the runs below `root`, each by its path relative to it. Links are followed directly in it, no deeper."""
    found: FoundRuns = {"stages": [], "evaluations": [], "reports": []}
    for folder, names in _walk(root, root, DEPTH):
        place = Path(folder).relative_to(root).as_posix()
        if "metrics.jsonl" in names or ("recipe.json" in names and Path(folder).parent.name == "train"):
            found["stages"].append(place)
        if {"results.jsonl", "outcomes.jsonl"} & names or {"run.json", BEACON} <= names:
            found["evaluations"].append(place)
        if "report.json" in names:
            found["reports"] += [
                f"{place}/{name}".removeprefix("./") for name in sorted(names) if name.endswith(".html")
            ]
    return found


def _walk(root: Path, folder: Path, depth: int) -> Iterator[tuple[str, set[str]]]:
    below, names = [], set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=folder == root):
                    below.append(entry.name)
                else:
                    names.add(entry.name)
    except OSError:  # no right to look, or gone by now
        return
    if "shards" in below:
        names.add("outcomes.jsonl")  # an evaluation of which so far only shards exist
    yield str(folder), names
    for name in sorted(below) if depth else ():
        if name not in SKIPPED:
            yield from _walk(root, folder / name, depth - 1)


def finished_head(id_: str, folder: Path) -> EvaluationHead:
    """Return the head of an evaluation that has a summary, damaged or not."""
    from vlm.eval.saved.evaluations import label_of, read_summary

    head = unfinished_head(id_, folder)
    try:
        summary, _ = read_summary(folder / "summary.json")
        with only_vlm_errors(f"{folder / 'summary.json'}"):
            variant = label_of(summary["variant"])
    except VlmError as error:
        return {**head, "state": "damaged", "damaged": str(error).splitlines()[0]}
    metric, items = next(iter(summary["metrics"]), None), number(summary["data"].get("items"))
    return {
        **head,
        "benchmark": summary["benchmark"],
        "title": summary["title"],
        "model": summary["model"],
        "variant": variant,
        "state": "finished",
        "done": None if items is None else int(items),
        "total": None if items is None else int(items),
        "score": metric["value"] if metric else None,
        "low": metric.get("low") if metric else None,
        "high": metric.get("high") if metric else None,
        "metric": metric["name"] if metric else "",
        "left": None,
        "mini": bool(summary["data"].get("mini")),
        "damaged": "",
    }


def unfinished_head(id_: str, folder: Path) -> EvaluationHead:
    """Return the head of an evaluation that runs, or was begun: what its workers wrote of their progress, added up."""
    works = [path for path in (folder, *sorted(folder.glob("shards/*"))) if (path / BEACON).is_file()]
    parts = [read_small(path / BEACON, 1 << 14) for path in works]
    if len(works) > 1 and works[0] == folder:  # who gathers the shards counts their items too
        works, parts = works[1:], parts[1:]
    known = [
        (int(done), int(total), part)
        for part in parts
        if (done := number(part.get("done"))) is not None and (total := number(part.get("total"))) is not None
    ]
    done, total = sum(d for d, _, _ in known), sum(t for _, t, _ in known)
    scores = [(d, score) for d, _, part in known if (score := score_of(part)) is not None]
    weight = sum(d for d, _ in scores)
    holders = [holder_of(path) for path in works or [folder]]
    alive, parts_of = any(h.alive for h in holders), Path(id_).parts
    run = read_small(works[0] / "run.json") if works else read_small(folder / "run.json")
    options = run.get("options")
    name = options.get("name") if isinstance(options, dict) else None
    return {
        "id": id_,
        "run": parts_of[0] if parts_of else "",
        "benchmark": folder.parent.name,
        "title": folder.parent.name,
        "model": str(name or folder.parent.parent.name),
        "variant": folder.name,
        "state": "running" if alive else "stopped",
        "done": done if known else None,
        "total": total or None,
        "score": 100 * sum(d * s for d, s in scores) / weight if weight else None,
        "low": None,
        "high": None,
        "metric": "mean score so far",
        "left": max((left for _, _, p in known if (left := number(p.get("left"))) is not None), default=None)
        if alive
        else None,
        "mini": False,
        "damaged": "",
    }


def score_of(part: dict[str, Any]) -> float | None:
    """Return the mean score so far, from 0 to 1, that a worker wrote."""
    values = part.get("values")
    return number(values.get("score")) if isinstance(values, dict) else None
