"""The training loop: resume, step, log, checkpoint, export; a rerun continues where the last one stopped.

>>> train(load_recipe("quickstart-v2pe-sft"), Path("runs/quickstart/train/quickstart-v2pe-sft"))     # doctest: +SKIP
"""

import math
import resource
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch

from vlm.core.errors import ConfigError, DataError, Preempted, VlmError
from vlm.core.home import locked, read_json, resolve, write_json
from vlm.core.sample.index import LineIndex
from vlm.models.checkpoint.load import fingerprint, load_model, save_state
from vlm.models.checkpoint.locate import find_checkpoint
from vlm.models.processor import Processor
from vlm.models.sequence_parallel import spread
from vlm.train.parameters.lora import merge, prepare, save_adapters
from vlm.train.parameters.optim import lr_factor
from vlm.train.plan.run_plan import RunPlan
from vlm.train.recipe.recipe import Recipe, training_spec
from vlm.train.run.boards import Boards, is_spike
from vlm.train.run.checkpoint import RunState, load_checkpoint, save_checkpoint, writing
from vlm.train.run.engine import Engine, seed_step, slicer
from vlm.train.run.metrics import Ledger, Log, ProgressBar
from vlm.train.run.processes import World, check_mesh, meshed, world
from vlm.train.run.speed import SpeedMeter
from vlm.train.run.stream import StepData, Stream, computed, deal, to_tensors


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collect SIGTERM, SIGUSR1 and the first Ctrl-C in a list; the second Ctrl-C stops at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, _: Any) -> None:
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(number)

    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {s: signal.signal(s, note) for s in signals}
    try:
        yield received
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def prefetch(stream: Stream, first: int, total: int) -> Iterator[StepData]:
    """Yield the data of each step, made one step ahead in a thread (image decoding releases the interpreter)."""
    if first >= total:
        return
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(stream.step, first)
        for step in range(first, total):
            current = ahead.result()
            if step + 1 < total:
                ahead = pool.submit(stream.step, step + 1)
            yield current


def train(
    recipe: Recipe,
    out: Path,
    *,
    plan: RunPlan | None = None,
    quiet: bool = False,
    resume_changed: bool = False,
) -> Path:
    """Run one stage, or continue it; return the folder of the exported model, `out`/model.

    >>> train(load_recipe("quickstart-v2pe-sft"), Path("runs/mine/train/quickstart-v2pe-sft"))     # doctest: +SKIP

    Args:
        recipe: the stage.
        out: receives recipe.json, metrics.jsonl, ledger.jsonl, checkpoints/ and model/.
        plan: the recipe's, if it is resolved already.
        quiet: show no progress bar.
        resume_changed: continue although the recipe, the data or the start checkpoint changed.

    Raises:
        Preempted: stopped by a signal after a checkpoint.
        LockedError: `out` is in use.
        ConfigError: `out` holds a run of another recipe.
        DataError: too many samples lost, or a loss that is not finite.
        VlmError: the disk is full or read-only.
    """
    me = world()
    with writing(out), ExitStack() as held:
        refused = None
        if me.first:
            try:
                held.enter_context(locked(out, f"vlm train --recipe {recipe.name}"))
                check_mesh(me.size, recipe.sequence_parallel.size)
                check_recipe(recipe, out, resume_changed)
            except VlmError as error:
                refused = error
        if me.agree(refused is not None):
            if refused is not None:
                raise refused
            return out / "model"  # the first process says why
        if me.agree(me.first and (out / "model/config.json").exists()):
            return out / "model"
        return run_stage(
            plan or RunPlan.resolve(recipe, me.size), out, meshed(me, recipe.sequence_parallel.size), quiet
        )


def check_recipe(recipe: Recipe, out: Path, resume_changed: bool) -> None:
    """Refuse to continue a run of another recipe, other data or another start checkpoint; write recipe.json.

    Raises:
        ConfigError: the recipe or the start checkpoint changed.
        DataError: the number of records changed.
    """
    file = out / "recipe.json"
    files = [entry.file for entry in recipe.data if resolve(entry.file).is_file()]
    lines = {name: len(LineIndex(resolve(name))) for name in files}
    start = fingerprint(find_checkpoint(recipe.model.start))
    if file.exists():
        before = read_json(file)
        if before["digest"] != recipe.digest and not resume_changed:
            changed = changes(before["recipe"], recipe.model_dump(mode="json"))
            raise ConfigError(
                f"{out} holds a run of another recipe:\n" + "\n".join(changed),
                fix="use another --run, delete the folder, or pass --allow-change",
            )
        was = {name: before.get("lines", {}).get(name, n) for name, n in lines.items()}
        if was != lines and not resume_changed:
            raise DataError(
                f"the data is not what {out} was started with (records):\n" + "\n".join(changes(was, lines)),
                expected="files with as many records as at the start, or the order of samples changes",
                fix="restore the files, use another --run, or pass --allow-change",
            )
        if before["start"] != start and not resume_changed:
            raise ConfigError(
                f"{recipe.model.start} is not the checkpoint that {out} was trained from",
                fix=f"delete {out} to train it again, or pass --allow-change",
            )
    now = recipe.model_dump(mode="json")
    write_json(file, {"digest": recipe.digest, "start": start, "lines": lines, "recipe": now})


def changes(before: Any, now: Any, key: str = "") -> list[str]:
    """Return a line for each dotted key that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [c for k in keys for c in changes(before.get(k), now.get(k), f"{key}.{k}".lstrip("."))]
    return [] if before == now else [f"  {key}: {before} -> {now}"]


class StepLine(TypedDict):
    """One line of metrics.jsonl; the last three are those of `SpeedLine`."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    useful_tokens: int
    padding_share: float
    labels: int
    samples: int
    rows: int
    fill: float
    tokens_per_s: float
    seconds: float
    rss_gb: float
    mfu: NotRequired[float]
    memory_gb: NotRequired[float]
    data_wait_s: NotRequired[float]


def run_stage(plan: RunPlan, out: Path, me: World, quiet: bool) -> Path:
    """Run all steps that are left, then export the model."""
    recipe = plan.recipe
    start = find_checkpoint(recipe.model.start)
    adjust = partial(training_spec, recipe.model)
    placed = slicer(recipe, me) if recipe.zero_stage == 3 else None  # no process ever holds the whole model
    model = load_model(start, str(me.device), "float32", adjust=adjust, placed=placed)
    processor = Processor(model.spec, start)
    stream = Stream(recipe, processor)
    counts = prepare(model, recipe)
    if recipe.gradient_checkpointing:
        model.set_gradient_checkpointing(True)
    if me.sequence is not None:
        spread(model, me.sequence, recipe.sequence_parallel.kind)
    engine = Engine(model, recipe, me)
    state = load_checkpoint(engine, out / "checkpoints", me) or {"step": 0, "ledger": None}
    first, total = state["step"], stream.total_steps
    metrics, ledger = Log(out / "metrics.jsonl"), Ledger(out, state["ledger"], writes=me.first)
    if me.first:
        metrics.cut(first)
        ledger.log.cut(first)
    me.barrier()
    losses = [line["loss"] for line in metrics.read()]
    meter = SpeedMeter(plan, me.size) if me.first else None
    boards = Boards(out, recipe.log if me.first else (), first, recipe.name)

    def save(step: int) -> None:
        state: RunState = {"step": step, "ledger": ledger.counts}
        save_checkpoint(engine, out / "checkpoints", state, recipe.keep, me)

    with stop_requests() as stop, ProgressBar(recipe.name, total, me.first and not quiet) as bar, closing(boards):
        asked = time.perf_counter()
        for step, data in enumerate(prefetch(stream, first, total), first):
            waited = time.perf_counter() - asked
            ledger.add(step, data.n_samples, data.lost)
            bar.say(data.notes)
            note = "no usable sample"
            if data.rows:
                line = one_step(engine, recipe, processor, data, step, total, me)
                note = f"loss {line['loss']:.4f}  {line['tokens_per_s']:.0f} tok/s"
                if meter is not None:
                    line |= meter.line(data.rows, line["seconds"], waited)  # type: ignore[typeddict-item]
                    metrics.write(**line)
                    boards.write(line)
                if not math.isfinite(line["loss"]) or is_spike(losses, line["loss"]):
                    ids = sorted({i for row in data.rows for i in row.ids})
                    fix = f"look at samples {ids}"
                    wanted = "a finite loss, not far above those before"
                    raise DataError(f"loss is {line['loss']} at step {step}", expected=wanted, fix=fix)
                losses.append(line["loss"])
            bar.update(step + 1, note)
            if too_many := lost_too_many(recipe, ledger, total):
                save(step + 1)
                raise too_many
            if me.agree(bool(stop)):
                save(step + 1)
                if stop and stop[0] == signal.SIGINT:
                    raise KeyboardInterrupt
                done = f"stopped after step {step + 1} of {total}, everything saved"
                raise Preempted(done, fix="rerun the same command to continue")
            if (step + 1) % recipe.save_every == 0 and step + 1 < total:
                save(step + 1)
            asked = time.perf_counter()
    return export(engine, recipe, out, me, start, counts, ledger)


def lost_too_many(recipe: Recipe, ledger: Ledger, total: int) -> DataError | None:
    """Return the error as soon as more than `max_lost` of the whole run is sure to be lost; None before."""
    dropped, samples = ledger.counts["dropped"], total * recipe.batch.samples
    if dropped / samples <= recipe.max_lost:
        return None
    return DataError(
        f"{dropped} of {ledger.counts['in']} samples so far were dropped; see {ledger.log.path}",
        expected=f"at most {recipe.max_lost:.2%} of the run's {samples} (max_lost)",
        fix="repair the data and start in a new folder, or raise max_lost on purpose: the run then continues",
    )


def one_step(
    engine: Engine, recipe: Recipe, processor: Processor, data: StepData, step: int, total: int, me: World
) -> StepLine:
    """Run one step over this rank's rows, or its share of them: forward, backward, update.

    Returns:
        The line for metrics.jsonl, without the speed.
    """
    began = time.perf_counter()
    seed_step(recipe.seed, step, me.rank)
    rows = deal(data.rows, me.data_rank, me.data_size)
    most = max(len(deal(data.rows, r, me.data_size)) for r in range(me.data_size))
    weight = sum(row.weight for row in data.rows)
    pixels_on = torch.device("cpu") if me.sequence else me.device  # of a shared row, a share of the tiles is moved
    lr = engine.set_lr_factor(lr_factor(step, total, recipe.optimizer))
    loss = 0.0
    for i in range(most):  # ranks with fewer rows repeat one with weight 0, so that collectives stay in step
        row = rows[i] if i < len(rows) else data.rows[0]
        batch = to_tensors(row, processor, me.device, pixels_on)
        if i >= len(rows):
            batch["loss_weights"] = torch.zeros_like(batch["loss_weights"])  # type: ignore[arg-type]
        loss += engine.accumulate(batch, weight, last=i == most - 1)
    norm = engine.step()
    loss = me.total(loss)
    tokens = sum(len(row.input_ids) for row in data.rows)
    held = [computed(row, recipe.sequence_parallel.kind, me.sequence_size) for row in data.rows]
    padding = sum(held) - tokens + (most * me.data_size - len(data.rows)) * held[0]  # and the rows that are repeated
    seconds = time.perf_counter() - began
    return {
        "step": step,
        "loss": loss,
        "lr": lr,
        "grad_norm": norm,
        "useful_tokens": tokens,
        "padding_share": padding / (tokens + padding),
        "labels": sum(int((row.labels != -100).sum()) for row in data.rows),
        "samples": data.n_samples - data.n_dropped,
        "rows": len(data.rows),
        "fill": tokens / (len(data.rows) * recipe.batch.max_tokens),
        "tokens_per_s": tokens / seconds,
        "seconds": seconds,
        "rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def export(
    engine: Engine, recipe: Recipe, out: Path, me: World, start: Path, counts: dict[str, int], ledger: Ledger
) -> Path:
    """Write the trained model in our layout and the summary; a model that exists means that the stage is done."""
    state = engine.gathered_state()
    if me.first:
        strides = None if recipe.strides == "random" else recipe.strides
        spec = engine.model.spec.model_copy(update={"strides": strides})
        write_json(out / "summary.json", {"recipe": recipe.name, "trained": counts, "ledger": ledger.counts})
        if recipe.lora:
            save_adapters(state, recipe.lora, out / "adapter", trained=recipe.trainable, base=recipe.model.start)
            state = merge(state, recipe.lora)
        save_state(state, spec, out / "model", tokenizer=start)
    me.barrier()
    return out / "model"
