"""Evaluate one model on one benchmark: plan, skip known answers, ask, score, write.

    run_evaluation(load_benchmark("pope"), NativeBackend(Checkpoint(path)), out, Options(limit=100), data=folder)

It writes to the folder `out`:

    results.jsonl   one row per item in data order; the same bytes whatever was interrupted, batched or sharded
    summary.json    metrics with intervals, outcomes, what was run; the same bytes too
    run.json        provenance of the last command: versions, commit, machine
    timing.json     seconds of each command, in a separate file because they differ from run to run
    progress.json   how far the command is, for `vlm watch` and `vlm view`
    submission.*    the replies in the format of an evaluation server, where the benchmark has one
    outcomes.jsonl  the answers from which a killed run resumes (shards: shards/<i>-of-<n>/outcomes.jsonl)

plan.py plans the items, shards.py divides them, batches.py asks the backend, results.py scores and writes.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean

from pydantic import Field

from vlm.core.config import Strict
from vlm.core.errors import ConfigError
from vlm.core.fetch.miniature import is_marked
from vlm.core.home import locked, read_json, write_json
from vlm.core.paths import FileName
from vlm.core.progress import Beacon
from vlm.eval.backends.base import Backend
from vlm.eval.backends.judge import Judge
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders import load_items
from vlm.eval.run.batches import BATCH_TOKENS, answers, in_batches
from vlm.eval.run.outcomes import RETRY, Outcome, OutcomeLog, read_outcomes
from vlm.eval.run.overwrite import refuse_overwrite
from vlm.eval.run.plan import Task, documents, plan_tasks, select_items
from vlm.eval.run.provenance import provenance
from vlm.eval.run.results import known_scores, write_results
from vlm.eval.run.shards import assign
from vlm.eval.run.summary import DataFacts, Summary, SummaryHead, TimedRun, Variant

PATIENCE = 600.0
"""Seconds that a shard waits for another one that writes the results."""

Progress = Callable[[int, int, float | None], None]
"""Function that is called with items done, items in all, and the mean score so far (None before the first)."""


class Options(Strict):
    """How to run an evaluation.

    `stride`, `positions`, `tiles`, `max_new_tokens`, `shuffle_images` and `edition` make a variant.

    Attributes:
        name: The model's name in results.
        stride: V2PE stride of every image; None is one position per token.
        positions: "exact", "float32" as published, or "plain-prefill" as MMLongBench's published rows of V2PE.
        tiles: Tile budget per image; None is the benchmark's own.
        image_rule: Another image rule than the checkpoint's; the backend is already made with it.
        max_new_tokens: Token budget of every answer; None is the benchmark's own. For models that reason first.
        shuffle_images: Run the blind control: exchange the images between questions.
        seed: Seed of the blind control.
        edition: What identifies the content of a person's own file; "" for other benchmarks.
        limit: Run the first items only; None: all.
        batch_size: Items asked at once; changes no answer.
        shard: This worker's number, from 0, and the number of workers.
        retry_failed: Ask again where memory ran out or an error occurred.
        replace: Give up finished results of other weights, settings or items in the same folder.
        allow_missing: Most items whose picture or video may be missing, or rows of a person's own file that cannot be
            asked; their outcome is `error`.

    >>> Options(stride=64, tiles=6, shuffle_images=True).folder
    'stride64-tiles6-shuffled'
    """

    name: FileName = "model"
    stride: float | None = Field(None, gt=0, le=4096)
    positions: str = Field("exact", pattern="^(exact|float32|plain-prefill)$")
    tiles: int | None = Field(None, ge=1)
    image_rule: str | None = Field(None, pattern=r"^[a-z]+(:[0-9x]+)?$")
    max_new_tokens: int | None = Field(None, ge=1)
    shuffle_images: bool = False
    seed: int = 0
    edition: str = ""
    limit: int | None = Field(None, ge=1)
    batch_size: int = Field(8, ge=1)
    shard: tuple[int, int] = (0, 1)
    retry_failed: bool = False
    replace: bool = False
    allow_missing: int = Field(0, ge=0)

    @property
    def variant(self) -> Variant:
        """The settings that distinguish results of one model on one benchmark."""
        own: Variant = {
            "stride": self.stride,
            "positions": self.positions,
            "tiles": self.tiles,
            "shuffle_images": self.shuffle_images,
        }
        more: Variant = {"edition": self.edition} if self.edition else {}
        more |= {"image_rule": self.image_rule} if self.image_rule else {}
        return {**own, **({"max_new_tokens": self.max_new_tokens} if self.max_new_tokens else {}), **more}

    @property
    def folder(self) -> str:
        """Folder name of the variant: `default`, `stride64`, `stride64-shuffled`, `shuffled-seed1`, `file-EDITION`."""
        parts = [f"stride{self.stride:g}"] if self.stride is not None else []
        parts += [self.positions] if self.positions != "exact" else []
        parts += [f"tiles{self.tiles}"] if self.tiles else []
        parts += [self.image_rule.replace(":", "-")] if self.image_rule else []
        parts += [f"tokens{self.max_new_tokens}"] if self.max_new_tokens else []
        parts += ["shuffled", *([f"seed{self.seed}"] if self.seed else [])] if self.shuffle_images else []
        parts += [f"file-{self.edition}"] if self.edition else []
        return "-".join(parts) or "default"


def run_evaluation(
    benchmark: Benchmark,
    backend: Backend,
    out_dir: Path,
    options: Options,
    *,
    data: Path,
    progress: Progress = lambda *_: None,
    judge: Judge | None = None,
) -> Summary | None:
    """Evaluate a model on a benchmark and return the summary; None for a shard that leaves items to others.

    Every batch is on disk before the next begins, so a kill costs at most one batch. The process that finds all items
    answered writes the results: the last shard to end, or the same command without `shard`.

    Args:
        benchmark: The table.
        backend: The model.
        out_dir: Folder to write to.
        options: How to run.
        data: Folder with the benchmark's files.
        progress: Called after each batch.
        judge: For tables with a judge.

    Raises:
        ConfigError: A shard number out of range, or a folder with results of other weights, settings or items.
        LockedError: Another process runs the same evaluation (or shard).
        DataError: Missing or malformed files, or nothing was answered.

    >>> table = load_benchmark("easy-vqa")                                                      # doctest: +SKIP
    >>> backend = NativeBackend(Checkpoint("runs/quickstart/train/sft/model"))                  # doctest: +SKIP
    >>> run_evaluation(table, backend, Path("out"), Options(), data=folder)["metrics"][0]       # doctest: +SKIP
    """
    shard, n_shards = options.shard
    if not 0 <= shard < n_shards:
        raise ConfigError(f"shard {shard}/{n_shards}", expected=f"a number from 0 to {n_shards - 1}, then the count")
    started = time.monotonic()
    benchmark = benchmark.for_family(backend.family)
    if options.max_new_tokens and benchmark.teacher_forced:
        raise ConfigError(
            f"a token budget for {benchmark.name}", expected="none: its answers are given, and none is generated"
        )
    items = load_items(benchmark, data, count_tokens=backend.count_tokens, allow_missing=options.allow_missing)
    chosen = select_items(items, limit=options.limit, shuffle_images=options.shuffle_images, seed=options.seed)
    tasks = plan_tasks(benchmark, backend, chosen, options.max_new_tokens)
    work = out_dir if n_shards == 1 else out_dir / "shards" / f"{shard}-of-{n_shards}"
    with locked(work, f"vlm eval {benchmark.name}"):
        if not options.replace:
            refuse_overwrite(backend, tasks, out_dir)
        known = read_outcomes(_logs(out_dir), keep=lambda o: not (options.retry_failed and o.outcome in RETRY))
        share = _share(tasks, backend, shard, n_shards)
        todo = [task for task in share if task.key not in known]
        write_json(work / "run.json", provenance(backend.fingerprint, options.model_dump(mode="json"), data))
        with Beacon(work, benchmark.name, len(share), unit="items") as beacon:

            def both(done: int, total: int, mean: float | None) -> None:
                beacon.update(done, total, score=mean)
                progress(done, total, mean)

            _compute(benchmark, backend, share, todo, known, work, options.batch_size, both)
        _append_timing(work, time.monotonic() - started, computed=len(todo), reused=len(share) - len(todo))
        known = read_outcomes(_logs(out_dir))
        if any(task.key not in known for task in tasks):
            return None
        facts = data_facts(data, items=len(tasks), available=len(items), limit=options.limit)
        head: SummaryHead = {"model": options.name, "variant": options.variant, "data": facts}
        with nullcontext() if work == out_dir else locked(out_dir, f"vlm eval {benchmark.name}", wait=PATIENCE):
            if not options.replace:  # shards of another model may have finished meanwhile
                refuse_overwrite(backend, tasks, out_dir)
            answers_known = ((task, known[task.key]) for task in tasks)
            return write_results(benchmark, backend, answers_known, out_dir, head, judge)


def data_facts(folder: Path, *, items: int, available: int, limit: int | None) -> DataFacts:
    """Return the `data` of a summary; a folder with a marker holds a miniature."""
    return {"items": items, "available": available, "limit": limit, "mini": is_marked(folder)}


def _share(tasks: list[Task], backend: Backend, shard: int, n_shards: int) -> list[Task]:
    """Return the tasks of this worker: whole documents, so that no two workers compute one."""
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
    """Run the tasks to do, batch after batch; add their outcomes to `known` and to the log."""
    scores = known_scores(benchmark, [task for task in share if task.key in known], known)
    done = len(share) - len(todo)
    progress(done, len(share), fmean(scores) if scores else None)
    budget = getattr(backend, "batch_tokens", BATCH_TOKENS)
    order = in_batches(todo, documents(todo, backend), batch_size, max_tokens=budget)
    with OutcomeLog(work / "outcomes.jsonl") as log:
        for batch, outcomes in answers(backend, order):
            log.append(outcomes)
            known.update({o.key: o for o in outcomes})
            scores += known_scores(benchmark, batch, known)
            done += len(batch)
            progress(done, len(share), fmean(scores) if scores else None)


def _logs(out_dir: Path) -> list[Path]:
    return sorted(out_dir.glob("**/outcomes.jsonl"))


def _append_timing(work: Path, seconds: float, *, computed: int, reused: int) -> None:
    path = work / "timing.json"
    runs: list[TimedRun] = read_json(path)["runs"] if path.exists() else []
    ended = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    runs.append({"ended": ended, "seconds": round(seconds, 3), "computed": computed, "reused": reused})
    write_json(path, {"runs": runs})
