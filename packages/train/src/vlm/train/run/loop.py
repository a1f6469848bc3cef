"""The training loop: resume, step, log, checkpoint, export; a rerun continues where the last one stopped.

>>> train(load_recipe("quickstart-v2pe-sft"), Path("runs/quickstart/train/quickstart-v2pe-sft"))     # doctest: +SKIP
"""

import math
import resource
import signal
import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import NotRequired, TypedDict

import torch

from vlm.core.errors import ConfigError, DataError, Preempted, VlmError
from vlm.core.home import locked, new_folder, write_json
from vlm.core.progress import Beacon, Progress
from vlm.models.checkpoint.formats.schema import HEAD
from vlm.models.checkpoint.load import load_model, write_checkpoint
from vlm.models.checkpoint.locate import find_checkpoint
from vlm.models.checkpoint.safetensors_io import write_order
from vlm.models.processor import Processor
from vlm.models.sequence_parallel import spread
from vlm.train.parameters.lora import merge_one, merged_names, prepare, save_adapters, saved_names
from vlm.train.parameters.optim import lr_factor
from vlm.train.plan.run_plan import RunPlan
from vlm.train.recipe.recipe import Recipe, trained_strides, training_spec
from vlm.train.run.boards import Boards, is_spike
from vlm.train.run.checkpoint import RunState, load_checkpoint, save_checkpoint, writing
from vlm.train.run.engine import Engine, seed_step, slicer
from vlm.train.run.held_back import HeldBack
from vlm.train.run.metrics import Ledger, Log
from vlm.train.run.processes import World, check_mesh, meshed, world
from vlm.train.run.provenance import Begun, begin, finished
from vlm.train.run.shares import batches, most_rows, same_for_all
from vlm.train.run.speed import SpeedMeter
from vlm.train.run.stream import StepData, Stream, computed
from vlm.train.run.waiting import prefetch, stop_requests


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
        out: receives recipe.json, metrics.jsonl, ledger.jsonl, progress.json, checkpoints/ and model/.
        plan: the recipe's, if it is resolved already.
        quiet: no bar on a terminal, and no word of each sample that is lost; a log has its lines.
        resume_changed: continue although the recipe, the data or the start checkpoint changed.

    Raises:
        Preempted: stopped by a signal after a checkpoint.
        LockedError: `out` is in use.
        ConfigError: `out` holds a run of another recipe, or a finished one that was asked for more.
        DataError: other data than at the start, too many samples lost, or a loss that is not finite.
        VlmError: the disk is full or read-only.
    """
    me = world()
    with writing(out), ExitStack() as held:
        # DeepSpeed exchanges it for ZeRO-3 and leaves it so: a model that answers later would round its bias twice
        held.callback(setattr, torch.nn.functional, "linear", torch.nn.functional.linear)
        refused = begun = None
        if me.first:
            try:
                held.enter_context(locked(out, f"vlm train --recipe {recipe.name}"))
                check_mesh(me.size, recipe.sequence_parallel.size)
                begun = begin(recipe, out, allow_change=resume_changed, processes=me.size)
            except VlmError as error:
                refused = error
        if me.agree(refused is not None):
            if refused is not None:
                raise refused
            return out / "model"  # the first process says why
        if me.agree(me.first and finished(out)):
            return out / "model"
        plan = plan or RunPlan.resolve(recipe, me.size)
        with Beacon(out, recipe.name, unit="steps", writes=me.first) as beacon:
            return run_stage(plan, out, meshed(me, recipe.sequence_parallel.size), quiet, begun, beacon)


class StepLine(TypedDict):
    """One line of metrics.jsonl; the last five are those of `SpeedLine` and `HeldLine`."""

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
    eval_loss: NotRequired[float]
    eval_samples: NotRequired[int]


def run_stage(plan: RunPlan, out: Path, me: World, quiet: bool, begun: Begun | None, beacon: Beacon) -> Path:
    """Run all steps that are left, then export the model. `begun` and what `beacon` writes are the first process's."""
    recipe = plan.recipe
    start = find_checkpoint(recipe.model.start)
    adjust = partial(training_spec, recipe.model)
    placed = slicer(recipe, me) if recipe.zero_stage == 3 else None  # no process ever holds the whole model
    processor = Processor(plan.spec, start)  # before gigabytes are read: it says what does not fit
    model = load_model(start, str(me.device), "float32", adjust=adjust, placed=placed)
    stream = Stream(recipe, processor, me.data_size)
    counts = prepare(model, recipe)
    if recipe.gradient_checkpointing:
        model.set_gradient_checkpointing(True)
    if me.sequence is not None:
        spread(model, me.sequence, recipe.sequence_parallel.kind)
    engine = Engine(model, recipe, me)
    metrics = Log(out / "metrics.jsonl")
    logs = (metrics, Log(out / "ledger.jsonl"))
    state = load_checkpoint(engine, out / "checkpoints", me, logs) or {"step": 0, "ledger": None}
    first, total = state["step"], stream.total_steps
    if me.agree(begun is not None and begun.changed and first >= total):
        raise ConfigError(
            f"no step is left to train: the last checkpoint in {out} is of step {first}, the changed recipe asks for "
            f"{total}",
            fix=f"ask for more steps, such as --set steps={first + 1}, or use another --run",
        )
    ledger = Ledger(out, state["ledger"], writes=me.first)
    if me.first:
        for log in logs:
            log.cut(first)
    me.barrier()
    losses = [line["loss"] for line in metrics.read()]
    meter = SpeedMeter(plan, me.size) if me.first else None
    held = HeldBack(recipe, processor, engine, me) if recipe.eval_data else None
    boards = Boards(out, recipe.log if me.first else (), first, recipe.name)
    saved, record = first, None

    def save(step: int) -> None:
        nonlocal saved
        if step == saved:
            return
        for log in logs:
            log.flush()
        lines = {log.path.name: log.count(step) for log in logs} if me.first else {}
        state: RunState = {"step": step, "ledger": ledger.counts, "lines": lines}
        save_checkpoint(engine, out / "checkpoints", state, recipe.keep, me, run=record)
        saved = step

    def heed(step: int) -> None:
        """End the run before a step, everything saved, if a signal asked any process to."""
        if not me.agree(bool(stop)):
            return
        save(step)
        if stop and stop[0] == signal.SIGINT:
            raise KeyboardInterrupt
        done = f"stopped after step {step} of {total}, everything saved"
        raise Preempted(done, fix="rerun the same command to continue")

    with ExitStack() as open_:
        stop = open_.enter_context(stop_requests())
        bar = open_.enter_context(Progress(recipe.name, total, unit="steps", visible=me.first, bar=not quiet))
        beacon.update(first, total)
        open_.enter_context(closing(boards))
        made = open_.enter_context(closing(prefetch(stream.step, first, total, stop)))
        asked = time.perf_counter()
        for step, data in enumerate(made, first):
            heed(step)
            assert data is not None  # else a signal came
            data = same_for_all(stream, step, data, me)
            waited = time.perf_counter() - asked
            if begun is not None and record is None:
                record = begun.write(first).model_dump(mode="json")
            ledger.add(step, data.n_samples, data.lost)
            if not quiet:
                bar.say(data.notes)
            note = "no usable sample"
            if data.rows:
                line = one_step(engine, recipe, processor, data, step, total, me)
                if held is not None and ((step + 1) % recipe.save_every == 0 or step + 1 == total):
                    line |= held.at(step + 1)  # type: ignore[typeddict-item]
                if meter is not None:
                    line |= meter.line(data.rows, line["seconds"], waited)  # type: ignore[typeddict-item]
                    metrics.write(**line)
                    boards.write(line)
                    note = step_words(line)
                if not math.isfinite(line["loss"]) or is_spike(losses, line["loss"]):
                    ids = sorted({i for row in data.rows for i in row.ids})
                    fix = f"look at samples {ids}"
                    wanted = "a finite loss, not far above those before"
                    raise DataError(f"loss is {line['loss']} at step {step}", expected=wanted, fix=fix)
                losses.append(line["loss"])
            bar.update(step + 1, note=note)
            beacon.update(step + 1)
            if too_many := lost_too_many(recipe, ledger, total):
                save(step + 1)
                raise too_many
            if (step + 1) % recipe.save_every == 0 and step + 1 < total:
                save(step + 1)
            asked = time.perf_counter()
        heed(total)
    return export(engine, recipe, out, me, start, counts, ledger, stream, held)


def step_words(line: StepLine) -> str:
    """Return what a line of progress says of a step.

    >>> step_words({"loss": 2.31, "lr": 1e-4, "tokens_per_s": 1234.5, "memory_gb": 2.0})     # doctest: +SKIP
    'loss 2.3100, lr 0.0001, 1,234 tokens/s, 2.0 GB'
    """
    held = f", held back {line['eval_loss']:.4f}" if "eval_loss" in line else ""
    speed = f"{line['tokens_per_s']:,.0f} tokens/s, {line['memory_gb']:.1f} GB"
    return f"loss {line['loss']:.4f}{held}, lr {line['lr']:.3g}, {speed}"


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
    most = most_rows(data.rows, me)
    weight = sum(row.weight for row in data.rows)
    lr = engine.set_lr_factor(lr_factor(step, total, recipe.optimizer))
    shares = [
        engine.accumulate(batch, weight, last=i == most - 1)
        for i, batch in enumerate(batches(data.rows, processor, me))
    ]
    norm = engine.step()
    loss = me.total(sum(shares, torch.zeros((), dtype=torch.float64, device=me.device)))
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
    engine: Engine,
    recipe: Recipe,
    out: Path,
    me: World,
    start: Path,
    counts: dict[str, int],
    ledger: Ledger,
    stream: Stream,
    held: HeldBack | None,
) -> Path:
    """Write the trained model in our layout and the summary; a model that exists means that the stage is done.

    The processes gather one tensor after another; the first holds one at a time beside what it trained.
    """
    measured = {} if held is None else {**held.at(stream.total_steps), "eval_dropped": held.dropped}
    if me.first:
        ledger.add_unseen(stream.total_steps, stream.unseen)
        summary = {"recipe": recipe.name, "trained": counts, "ledger": ledger.counts, "unseen": len(stream.unseen)}
        write_json(out / "summary.json", summary | measured)
    inside = engine.shapes()
    if recipe.lora:
        own = saved_names(inside, recipe.trainable)
        adapters = dict(zip(own, engine.gathered(own), strict=False))
        if me.first:
            save_adapters(adapters, recipe.lora, out / "adapter", trained=recipe.trainable, base=recipe.model.start)
    parts = merged_names(inside)
    spec = engine.model.spec.model_copy(update=trained_strides(recipe, engine.model.tokens_per_tile))
    if spec.language.tied:
        parts.pop(HEAD)
    shapes = {name: inside[first] for name, (first, *_) in parts.items()}
    if me.first:
        with new_folder(out / "model") as folder:
            write_checkpoint(
                folder, spec, shapes, lambda name: merge_one(engine.gathered(parts[name]), recipe.lora), tokenizer=start
            )
    else:
        for name in write_order(shapes):
            engine.gathered(parts[name])
    me.barrier()
    return out / "model"
