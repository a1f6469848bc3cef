"""Kill, stop and damage a run, or start it twice: a rerun continues with the losses of an undisturbed run."""

import json
import os
import random
import shutil
import signal
import time

import pytest

from vlm.core.errors import CheckpointError, ConfigError, LockedError
from vlm.train.run import checkpoint
from vlm.train.run.loop import train

STEPS = ("steps=12", "save_every=3", "strides=random")
TRAJECTORY = {}


def lines(out):
    path = out / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def saved(out):
    return [p.name for p in checkpoint.complete(out / "checkpoints")]


@pytest.fixture
def start(vlm, recipe_file, tmp_path):
    """Start the tiny run, by default in tmp_path/run; its stage folder is the second value."""

    def start(*more, run=tmp_path / "run", **kw):
        sets = [x for s in STEPS for x in ("--set", s)]
        return vlm("train", "-r", recipe_file, "--run", run, "--quiet", *sets, *more, **kw), run / "train/tiny"

    return start


@pytest.fixture
def undisturbed(start, tmp_path, curve):
    """The trajectory of a run that nothing happened to."""
    if "curve" not in TRAJECTORY:
        child, out = start(run=tmp_path / "undisturbed")
        assert child.wait() == 0, child.said
        TRAJECTORY["curve"] = curve(out)
        assert len(TRAJECTORY["curve"]) == 12
    return TRAJECTORY["curve"]


@pytest.fixture
def interrupted(start, tmp_path_factory):
    """A copy of a run that was killed with two checkpoints on disk."""
    if "interrupted" not in TRAJECTORY:
        run = tmp_path_factory.mktemp("interrupted")
        child, out = start(run=run)
        child.until(lambda: len(saved(out)) == 2)
        child.process.kill()
        child.process.join()
        assert not (out / "model").exists()
        TRAJECTORY["interrupted"] = out
    copy = tmp_path_factory.mktemp("copy") / "tiny"
    shutil.copytree(TRAJECTORY["interrupted"], copy)
    return copy


def go_on(start, out, undisturbed, curve):
    child, _ = start()
    assert child.wait() == 0, child.said
    assert curve(out) == undisturbed
    assert (out / "model/config.json").exists()


def test_killed_after_a_checkpoint_continues_with_the_same_losses(start, undisturbed, curve):
    child, out = start()
    child.until(lambda: saved(out) and lines(out) > int(saved(out)[-1].removeprefix("step-")))  # lines to take back
    child.process.kill()
    assert child.wait() == -signal.SIGKILL and not (out / "model").exists()
    assert 3 <= lines(out) < 12
    go_on(start, out, undisturbed, curve)


def test_killed_before_any_checkpoint_starts_again_with_the_same_losses(start, undisturbed, curve):
    child, out = start("--set", "save_every=100")
    child.until(lambda: lines(out) >= 2)
    child.process.kill()
    assert child.wait() == -signal.SIGKILL and not saved(out)
    go_on(start, out, undisturbed, curve)


@pytest.mark.slow
def test_killed_at_ten_random_steps_the_losses_and_the_model_are_those_of_an_undisturbed_run(start, tmp_path, curve):
    """Three of the kills are in the middle of writing a checkpoint."""
    sets = ("--set", "steps=40")
    child, whole = start(*sets, run=tmp_path / "whole")
    assert child.wait() == 0, child.said
    out, moments, torn = tmp_path / "run/train/tiny", random.Random(0), 0
    steps = sorted(moments.sample(range(1, 40), 10))
    within = moments.sample(steps[:-1], 3)
    for step in steps:
        child, _ = start(*sets)
        child.until(lambda: not half_written(out))  # what the kill before has left is removed
        child.until(lambda wanted=step: lines(out) >= wanted)
        if step in within:
            child.until(lambda: half_written(out))
        else:
            time.sleep(moments.uniform(0, 0.05))
        child.process.kill()
        assert child.wait() == -signal.SIGKILL and not (out / "model").exists(), f"step {step}: {child.said}"
        torn += bool(half_written(out))
    child, _ = start(*sets)
    assert child.wait() == 0, child.said
    assert torn, "no kill came while a checkpoint was being written"
    assert curve(out) == curve(whole) and len(curve(whole)) == 40
    assert contents(out / "model") == contents(whole / "model")
    assert (out / "summary.json").read_bytes() == (whole / "summary.json").read_bytes()


def half_written(out):
    folders = (out / "checkpoints").glob(".step-*.tmp")
    return [p for p in folders if not (p / checkpoint.MANIFEST).exists()]


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_says_resume_me_and_the_folder_is_locked_meanwhile(start, undisturbed, curve, recipe, number):
    child, out = start("--set", "save_every=100")
    child.until(lambda: (out / ".lock.json").exists())
    with pytest.raises(LockedError, match=rf'"pid": {child.pid}'):
        train(recipe(*STEPS), out, quiet=True)
    child.until(lambda: lines(out) >= 2)
    os.kill(child.pid, number)
    assert child.wait() == 0 and "resume me: stopped after step" in child.said
    assert saved(out) == [checkpoint.name(lines(out))] and lines(out) < 12
    go_on(start, out, undisturbed, curve)


def test_ctrl_c_saves_and_exits_with_130(start, undisturbed, curve):
    child, out = start("--set", "save_every=100")
    child.until(lambda: lines(out) >= 2)
    os.kill(child.pid, signal.SIGINT)
    assert child.wait() == 130 and "rerun the same command" in child.said and "Traceback" not in child.said
    assert saved(out) == [checkpoint.name(lines(out))] and lines(out) < 12
    go_on(start, out, undisturbed, curve)


def test_a_full_disk_is_named_and_leaves_the_last_checkpoint_whole(start, undisturbed, curve):
    child, out = start()
    child.until(lambda: saved(out))
    child.process.terminate()
    assert child.wait() == 0
    before = saved(out)
    child, _ = start(max_file=1_000_000)  # a checkpoint needs 2.5 MB
    assert child.wait() == 1 and "Traceback" not in child.said
    assert "error: cannot write" in child.said and "free space" in child.said
    assert saved(out) == before and not list((out / "checkpoints").glob(".*tmp"))
    go_on(start, out, undisturbed, curve)


def test_a_full_disk_during_the_export_is_named_and_no_half_model_is_left(start):
    child, out = start("--set", "save_every=100", max_file=500_000)  # the model needs 0.8 MB
    assert child.wait() == 1 and "error: cannot write" in child.said and "Traceback" not in child.said
    assert not (out / "model").exists()


def test_a_half_written_checkpoint_is_ignored_and_removed(interrupted, recipe, curve, undisturbed):
    newest = checkpoint.complete(interrupted / "checkpoints")[-1]
    half = newest.with_name(".step-00000009.tmp")
    shutil.copytree(newest, half)
    (half / checkpoint.MANIFEST).unlink()
    train(recipe(*STEPS), interrupted, quiet=True)
    assert not half.exists()
    assert [json.loads(c)["step"] for c in curve(interrupted)] == list(range(12))
    assert losses(curve(interrupted)) == pytest.approx(losses(undisturbed), rel=1e-4)


def losses(curve):
    return [json.loads(c)["loss"] for c in curve]


def truncate(path):
    path.write_bytes(path.read_bytes()[:1000])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage", [truncate, flip, lambda path: path.unlink()], ids=["truncated", "bit flip", "missing"]
)
def test_a_damaged_newest_checkpoint_is_skipped_with_a_warning(interrupted, recipe, curve, undisturbed, damage):
    newest = checkpoint.complete(interrupted / "checkpoints")[-1]
    damage(next(newest.glob("*.pt")))
    with pytest.warns(RuntimeWarning, match=f"{newest.name}.*going back"):
        train(recipe(*STEPS), interrupted, quiet=True)
    assert losses(curve(interrupted)) == pytest.approx(losses(undisturbed), rel=1e-4)


def test_only_damaged_checkpoints_are_an_error_not_a_new_start(interrupted, recipe):
    for path in checkpoint.complete(interrupted / "checkpoints"):
        truncate(next(path.glob("*.pt")))
    with pytest.warns(RuntimeWarning), pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        train(recipe(*STEPS), interrupted, quiet=True)


def test_a_changed_start_checkpoint_is_refused(interrupted, recipe):
    notes = interrupted / "recipe.json"
    notes.write_text(json.dumps({**json.loads(notes.read_text()), "start": "of another checkpoint"}))
    with pytest.raises(ConfigError, match="not the checkpoint"):
        train(recipe(*STEPS), interrupted, quiet=True)


def test_a_changed_recipe_is_refused_with_the_keys_that_differ(interrupted, recipe):
    changed = recipe(*STEPS, "optimizer.lr=0.5", "title=another title")
    with pytest.raises(ConfigError, match=r"optimizer\.lr: 0\.003 -> 0\.5") as error:
        train(changed, interrupted, quiet=True)
    assert "optimizer.clip" not in str(error.value)
    train(changed, interrupted, quiet=True, resume_changed=True)
    assert (interrupted / "model").exists()


def test_a_new_title_or_a_new_saving_habit_is_no_change(interrupted, recipe):
    train(recipe(*STEPS, "title=another title", "save_every=5", "max_lost=0.5"), interrupted, quiet=True)
    assert (interrupted / "model").exists()


def test_a_finished_run_is_a_no_op(interrupted, recipe):
    model = train(recipe(*STEPS), interrupted, quiet=True)
    before = {p: p.stat().st_mtime_ns for p in [*model.iterdir(), interrupted / "metrics.jsonl"]}
    shutil.rmtree(interrupted / "checkpoints")
    assert train(recipe(*STEPS), interrupted, quiet=True) == model
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_only_the_newest_checkpoints_are_kept(tmp_path, recipe):
    train(recipe("steps=5", "save_every=1", "keep=2"), tmp_path, quiet=True)
    assert saved(tmp_path) == ["step-00000003", "step-00000004"]
