"""Evaluate one model on one benchmark: plan, skip what is known, ask, score, write.

results.jsonl   one row per item in data order; the same bytes whatever was interrupted, batched or sharded
summary.json    metrics with intervals, outcomes, what was run; the same bytes too
run.json        provenance of the last command: versions, commit, machine
timing.json     what took how long, kept apart because it differs from run to run
submission.*    the replies in the format of an evaluation server, where the benchmark has one
outcomes.jsonl  the durable answers that a killed run goes on from (shards: shards/<i>-of-<n>/outcomes.jsonl)

plan.py says what to ask, shards.py who asks it, ask.py asks, results.py scores and writes.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import Field

from vlm.core.config import Strict
from vlm.core.errors import ConfigError
from vlm.core.home import locked, write_json
from vlm.eval.backends.base import Backend
from vlm.eval.backends.judge import Judge
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders import load_items
from vlm.eval.loaders.common import MARKER
from vlm.eval.run.batches import BATCH_TOKENS, answers, in_batches
from vlm.eval.run.outcomes import RETRY, Outcome, OutcomeLog, read_outcomes
from vlm.eval.run.plan import Task, documents, plan, select
from vlm.eval.run.provenance import provenance
from vlm.eval.run.results import finish, values
from vlm.eval.run.shards import assign

Progress = Callable[[int, int, float | None], None]
"""Called with items done, items in all, and the mean score so far (None before the first)."""


class Options(Strict):
    """How to run. `stride`, `positions`, `tiles` and `shuffle_images` make a variant; the rest changes no score.

    `stride`: V2PE stride of every image, None for one position per token. `positions`: exact, or float32 as published.
    `tiles`: tile budget per image, None for the benchmark's own. `shard`: (number from 0, of how many).
    """

    name: str = "model"
    stride: float | None = Field(None, gt=0, le=4096)
    positions: str = Field("exact", pattern="^(exact|float32)$")
    tiles: int | None = Field(None, ge=1)
    shuffle_images: bool = False
    seed: int = 0
    limit: int | None = Field(None, ge=1)
    batch_size: int = Field(8, ge=1)
    shard: tuple[int, int] = (0, 1)
    retry_failed: bool = False

    @property
    def variant(self) -> dict[str, Any]:
        """The settings that distinguish results of one model on one benchmark."""
        keys = ("stride", "positions", "tiles", "shuffle_images")
        return {key: getattr(self, key) for key in keys}

    @property
    def folder(self) -> str:
        """Folder name of the variant: `default`, `stride64`, `stride64-tiles6-shuffled`, `shuffled-seed1`, …"""
        parts = [f"stride{self.stride:g}"] if self.stride is not None else []
        parts += ["float32"] if self.positions == "float32" else []
        parts += [f"tiles{self.tiles}"] if self.tiles else []
        parts += ["shuffled", *([f"seed{self.seed}"] if self.seed else [])] if self.shuffle_images else []
        return "-".join(parts) or "default"


def run(
    benchmark: Benchmark,
    backend: Backend,
    out_dir: Path,
    options: Options,
    *,
    data: Path,
    progress: Progress = lambda *_: None,
    judge: Judge | None = None,
) -> dict[str, Any] | None:
    """Evaluate and return the summary; a shard that leaves items to others returns None.

    Every batch is on the disk before the next begins, so any kill costs one batch. Whichever process finds all items
    answered writes the results: the last shard to end merges, and so does the same command without `shard`.

    Raises:
        LockedError: another process runs the same evaluation (or shard). DataError: nothing could be answered.
    """
    shard, n_shards = options.shard
    if not 0 <= shard < n_shards:
        raise ConfigError(f"shard {shard}/{n_shards}", expected=f"a number from 0 to {n_shards - 1}, then the count")
    started = time.monotonic()
    benchmark = benchmark.for_family(backend.family)
    items = load_items(benchmark, data, count_tokens=backend.count_tokens)
    chosen = select(items, limit=options.limit, shuffle_images=options.shuffle_images, seed=options.seed)
    tasks = plan(benchmark, backend, chosen)
    work = out_dir if n_shards == 1 else out_dir / "shards" / f"{shard}-of-{n_shards}"
    with locked(work, f"vlm eval {benchmark.name}"):
        known = read_outcomes(_logs(out_dir), keep=lambda o: not (options.retry_failed and o.outcome in RETRY))
        share = _share(tasks, backend, shard, n_shards)
        todo = [task for task in share if task.key not in known]
        write_json(work / "run.json", provenance(backend.fingerprint, options.model_dump(mode="json"), data))
        _compute(benchmark, backend, share, todo, known, work, options.batch_size, progress)
        _append_timing(work, time.monotonic() - started, computed=len(todo), reused=len(share) - len(todo))
        known = read_outcomes(_logs(out_dir))
        if any(task.key not in known for task in tasks):
            return None
        counts = {"items": len(tasks), "available": len(items), "limit": options.limit}
        about = {"model": options.name, "variant": options.variant}
        about["data"] = {**counts, "mini": (data / MARKER).exists()}
        return finish(benchmark, backend, tasks, known, out_dir, about, judge)


def _share(tasks: list[Task], backend: Backend, shard: int, n_shards: int) -> list[Task]:
    """The tasks of this worker: whole documents, so that none is computed by two."""
    if n_shards == 1:
        return tasks
    found = documents(tasks, backend)
    mine = assign([document.cost for document in found], n_shards)[shard]
    return [tasks[i] for i in sorted(i for number in mine for i in found[number].tasks)]


def _compute(
    benchmark: Benchmark,
    backend: Backend,
    share: list[Task],
    todo: list[Task],
    known: dict[str, Outcome],
    work: Path,
    batch_size: int,
    progress: Progress,
) -> None:
    """Ask what is to do, batch after batch, and add it to `known` and to the log."""
    scores = values(benchmark, [task for task in share if task.key in known], known)
    done = len(share) - len(todo)
    progress(done, len(share), fmean(scores) if scores else None)
    budget = getattr(backend, "batch_tokens", BATCH_TOKENS)
    order = in_batches(todo, documents(todo, backend), batch_size, max_tokens=budget)
    with OutcomeLog(work / "outcomes.jsonl") as log:
        for batch, outcomes in answers(backend, order):
            log.append(outcomes)
            known.update({o.key: o for o in outcomes})
            scores += values(benchmark, batch, known)
            done += len(batch)
            progress(done, len(share), fmean(scores) if scores else None)


def _logs(out_dir: Path) -> list[Path]:
    return sorted(out_dir.glob("**/outcomes.jsonl"))


def _append_timing(work: Path, seconds: float, *, computed: int, reused: int) -> None:
    path = work / "timing.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    ended = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    runs.append({"ended": ended, "seconds": round(seconds, 3), "computed": computed, "reused": reused})
    write_json(path, {"runs": runs})
