"""Evaluate one model on one benchmark: plan, skip what is known, ask, score, write.

results.jsonl   one row per item in data order; the same bytes whatever was interrupted, batched or sharded
summary.json    metrics with intervals, outcomes, what was run; the same bytes too
run.json        provenance of the last command: versions, commit, machine
timing.json     what took how long, kept apart because it differs from run to run
submission.*    the replies in the format of an evaluation server, where the benchmark has one
outcomes.jsonl  the durable answers that a killed run goes on from (shards: shards/<i>-of-<n>/outcomes.jsonl)
"""

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import Field

from vlm.core.config import Strict
from vlm.core.errors import ConfigError, DataError
from vlm.core.home import locked, write_atomic, write_json
from vlm.eval.ask import Batch, Task, ask, encode
from vlm.eval.backends import Backend
from vlm.eval.benchmark import Benchmark
from vlm.eval.control import shuffle_media
from vlm.eval.judge import Judge, Verdict, judge_all, judge_summary
from vlm.eval.loaders import Item, load_items
from vlm.eval.loaders.common import MARKER
from vlm.eval.outcomes import RETRY, Outcome, OutcomeLog, content_key, file_hash, read_outcomes, scorer_hash
from vlm.eval.provenance import provenance
from vlm.eval.score import aggregate, score_item
from vlm.eval.shards import assign, batches
from vlm.eval.submission import write_submission

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
        """Folder name of the variant: `default`, `stride64`, `stride64-tiles6-shuffled`, …"""
        parts = [f"stride{self.stride:g}"] if self.stride is not None else []
        parts += ["float32"] if self.positions == "float32" else []
        parts += [f"tiles{self.tiles}"] if self.tiles else []
        parts += ["shuffled"] if self.shuffle_images else []
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
    tasks = plan(benchmark, backend, select(items, options))
    work = out_dir if n_shards == 1 else out_dir / "shards" / f"{shard}-of-{n_shards}"
    with locked(work, f"vlm eval {benchmark.name}"):
        known = read_outcomes(_logs(out_dir), keep=lambda o: not (options.retry_failed and o.outcome in RETRY))
        share = assign([task.cost for task in tasks], n_shards)[shard]
        todo = [tasks[i] for i in share if tasks[i].key not in known]
        write_json(work / "run.json", provenance(backend.fingerprint, options.model_dump(mode="json"), data))
        _compute(benchmark, backend, [tasks[i] for i in share], known, work, options.batch_size, progress)
        _append_timing(work, time.monotonic() - started, computed=len(todo), reused=len(share) - len(todo))
        known = read_outcomes(_logs(out_dir))
        if any(task.key not in known for task in tasks):
            return None
        about = {"items": len(tasks), "available": len(items), "limit": options.limit, "mini": (data / MARKER).exists()}
        return _finish(benchmark, backend, tasks, known, out_dir, options, about, judge)


def select(items: Sequence[Item], options: Options) -> list[Item]:
    """The items to run: all or the first `limit`, with exchanged media for the blind control.

    Raises:
        DataError: no items, or two items with one id.
    """
    if not items:
        raise DataError("the benchmark has no items", fix="check its files with `vlm data check`")
    twice = [id_ for id_, n in Counter(item.id for item in items).items() if n > 1]
    if twice:
        raise DataError(f"{len(twice)} ids occur more than once, for example {twice[0]!r}", expected="one item per id")
    chosen = shuffle_media(items, options.seed) if options.shuffle_images else list(items)
    return chosen[: options.limit]


def plan(benchmark: Benchmark, backend: Backend, items: Sequence[Item]) -> list[Task]:
    """Prompt, budget, cost and answer key of each item; reads file contents only to hash them."""
    tasks, generation = [], benchmark.generation
    for item in items:
        budget = item.meta.get("max_new_tokens", generation.by_group.get(item.group, generation.max_new_tokens))
        limits = {"max_new_tokens": int(budget), "min_new_tokens": generation.min_new_tokens}
        media = [p for m in item.messages for p in m["content"] if p["type"] != "text"]
        key = content_key(
            weights=backend.fingerprint,
            prompt=backend.prompt(item.messages),
            media=[[file_hash(p["path"]), p.get("clip"), *([p["frames"]] if "frames" in p else [])] for p in media],
            decode={**backend.settings, **limits},
        )
        tasks.append(Task(item, key, backend.cost(item.messages), limits))
    return tasks


def _compute(
    benchmark: Benchmark,
    backend: Backend,
    tasks: list[Task],
    known: dict[str, Outcome],
    work: Path,
    batch_size: int,
    progress: Progress,
) -> None:
    """Ask what is not yet in `known`, batch after batch, and add it there and to the log."""
    todo = [task for task in tasks if task.key not in known]
    values = _values(benchmark, [task for task in tasks if task.key in known], known)
    done = len(tasks) - len(todo)
    progress(done, len(tasks), fmean(values) if values else None)
    with OutcomeLog(work / "outcomes.jsonl") as log:
        for batch, encoded, outcomes in _encoded_ahead(backend, _batched(todo, batch_size)):
            outcomes += ask(backend, encoded)
            log.append(outcomes)
            known.update({o.key: o for o in outcomes})
            values += _values(benchmark, batch, known)
            done += len(batch)
            progress(done, len(tasks), fmean(values) if values else None)


def _batched(todo: list[Task], batch_size: int) -> list[list[Task]]:
    groups: dict[int, list[Task]] = {}
    for task in todo:  # a batch has one budget of new tokens
        groups.setdefault(task.limits["max_new_tokens"], []).append(task)
    return [
        [tasks[i] for i in batch]
        for tasks in groups.values()
        for batch in batches([t.cost for t in tasks], [t.media for t in tasks], batch_size)
    ]


def _encoded_ahead(backend: Backend, order: list[list[Task]]) -> Iterator[tuple[list[Task], Batch, list[Outcome]]]:
    """Each batch with its inputs; the next one is decoded and encoded while the model answers this one."""
    with ThreadPoolExecutor(1) as pool:
        futures = deque(pool.submit(encode, backend, batch) for batch in order[:1])
        for batch, following in zip_longest(order, order[1:]):
            encoded, failed = futures.popleft().result()
            if following:
                futures.append(pool.submit(encode, backend, following))
            yield batch, encoded, failed


def _values(benchmark: Benchmark, tasks: list[Task], known: dict[str, Outcome]) -> list[float]:
    scores = [score_item(benchmark, t.item, known[t.key].completion, "upstream") for t in tasks]
    return [score.value for score in scores if score.value is not None]


def _finish(
    benchmark: Benchmark,
    backend: Backend,
    tasks: list[Task],
    known: dict[str, Outcome],
    out_dir: Path,
    options: Options,
    about: dict[str, Any],
    judge: Judge | None = None,
) -> dict[str, Any]:
    """Score every answer, write results and summary, return the summary."""
    outcomes = [known[task.key] for task in tasks]
    verdicts = judge_all(benchmark, [(t.item, o.completion) for t, o in zip(tasks, outcomes, strict=True)], judge)
    rows = [_row(benchmark, *row) for row in zip(tasks, outcomes, verdicts, strict=True)]
    write_atomic(
        out_dir / "results.jsonl", "".join(json.dumps(r, ensure_ascii=False, sort_keys=True) + "\n" for r in rows)
    )
    counts = Counter(row["outcome"] for row in rows)
    summary: dict[str, Any] = {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "model": options.name,
        "variant": options.variant,
        "metrics": [_metric(m) for m in aggregate(benchmark, rows, "upstream")],
        "strict_metrics": [_metric(m) for m in aggregate(benchmark, rows, "fixed")],
        "published": [p.model_dump(mode="json") for p in benchmark.published],
        "outcomes": {kind: counts[kind] for kind in sorted(counts)},
        "data": about,
        "provenance": {"weights": backend.fingerprint, "scorers": scorer_hash(), "decode": backend.settings},
    }
    if benchmark.judge:
        summary["judge"] = about_judge = judge_summary(benchmark, verdicts, judge)
        for headline in (summary["metrics"][0], summary["strict_metrics"][0]):
            headline["note"] = about_judge["note"] or headline["note"]
    write_json(out_dir / "summary.json", summary)
    if not counts["ok"] and not counts["truncated"]:
        reasons = Counter(row["why"] for row in rows)
        raise DataError(
            f"none of {len(rows)} items was answered; most often: {reasons.most_common(1)[0][0]}",
            fix=f"see {out_dir / 'results.jsonl'}; after mending, run again with --retry-failed",
        )
    write_submission(benchmark, rows, out_dir)
    return summary


def _row(benchmark: Benchmark, task: Task, outcome: Outcome, verdict: Verdict | None) -> dict[str, Any]:
    item, judged = task.item, [verdict] if verdict else []
    judgement = {"judge": asdict(verdict)} if verdict else {}
    score = score_item(benchmark, item, outcome.completion, "upstream", *judged)
    strict = score_item(benchmark, item, outcome.completion, "fixed", *judged)
    why = score.why if score.value == strict.value else f"{score.why} · strict: {strict.why}"
    return {
        "benchmark": benchmark.name,
        "id": item.id,
        "group": item.group,
        "outcome": outcome.outcome,
        "prompt": task.question,
        "images": list(task.media),
        "completion": outcome.completion,
        "extracted": score.extracted,
        "score": score.value,
        "strict_score": strict.value,
        "why": why if outcome.answered else outcome.detail,
        "gold": item.gold,
        "meta": item.meta,
        "key": content_key(answer=outcome.key, scorers=scorer_hash(), **judgement),
        **judgement,
    }


def _metric(metric: Any) -> dict[str, Any]:
    return {
        "name": metric.name,
        "value": metric.value,
        "low": metric.low,
        "high": metric.high,
        "scored": metric.n_scored,
        "total": metric.n_total,
        "note": metric.note,
    }


def _logs(out_dir: Path) -> list[Path]:
    return sorted(out_dir.glob("**/outcomes.jsonl"))


def _append_timing(work: Path, seconds: float, *, computed: int, reused: int) -> None:
    path = work / "timing.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    runs.append(
        {
            "ended": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": round(seconds, 3),
            "computed": computed,
            "reused": reused,
        }
    )
    write_json(path, {"runs": runs})
