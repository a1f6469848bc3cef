"""Data that never comes: a signal is answered meanwhile with everything saved, and a sample has a limit."""

import json
import os
import signal
import time

import pytest

from vlm.core.errors import DataError
from vlm.train.launch.launch import free_port
from vlm.train.run import checkpoint, waiting
from vlm.train.run.metrics import read_account
from vlm.train.run.waiting import Made, Overdue, prefetch, within


@pytest.fixture
def pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return str(path)


@pytest.fixture
def stalled(vlm, recipe_file, tmp_path, pipe):
    """Start the tiny run where one line of the data is never answered, in one process or as one of `n`."""

    def start(line: int, *sets: str, rank: int = 0, n: int = 1):
        given = [x for s in sets for x in ("--set", s)]
        args = ("train", "-r", recipe_file, "--run", tmp_path / "run", "--quiet", *given)
        env = {"STALLED": str(line), "STALLED_RANK": str(rank), "PIPE": pipe}
        if n > 1:
            env |= {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        each = [env | ({"RANK": str(r), "LOCAL_RANK": str(r)} if n > 1 else {}) for r in range(n)]
        return [vlm(*args, env=e, script="stalled_worker.py") for e in each], tmp_path / "run/train/tiny"

    return start


def lines(out):
    path = out / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.fixture
def late_line(recipe, processor):
    """A line of the data that the fourth step is the first to read."""
    from vlm.train.run.stream import Stream

    return Stream(recipe("steps=6"), processor).picks(3)[2][2]


@pytest.mark.parametrize("number,code", [(signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGINT, 130)])
def test_a_signal_is_answered_while_the_data_of_a_step_never_comes(stalled, late_line, vlm, recipe_file, number, code):
    (child,), out = stalled(late_line, "steps=6", "save_every=100")
    child.until(lambda: lines(out) == 3)
    time.sleep(1)  # now it waits
    began = time.monotonic()
    os.kill(child.pid, number)
    assert child.wait(60) == code, child.said
    assert time.monotonic() - began < 40 and "Traceback" not in child.said
    assert [p.name for p in checkpoint.complete(out / "checkpoints")] == [checkpoint.name(3)]
    again = vlm("train", "-r", recipe_file, "--run", out.parent.parent, "--quiet", "--set", "steps=6")
    assert again.wait(120) == 0 and lines(out) == 6, again.said


def test_a_signal_before_the_first_step_ends_the_run_and_leaves_nothing_to_resume(stalled, recipe, processor):
    from vlm.train.run.stream import Stream

    (child,), out = stalled(Stream(recipe("steps=6"), processor).picks(0)[0][2], "steps=6")
    child.until(lambda: (out / "progress.json").exists())
    time.sleep(2)
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait(60) == 0 and "resume me: stopped after step 0 of 6" in child.said
    assert not (out / "checkpoints").exists() and not (out / "recipe.json").exists()


def test_a_sample_that_never_comes_is_a_named_loss_and_the_run_goes_on(stalled, late_line):
    (child,), out = stalled(late_line, "steps=4", "sample_seconds=3", "max_lost=0.5")
    assert child.wait(120) == 0, child.said
    (lost,) = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    assert (lost["id"], lost["step"], lost["what"], lost["stage"]) == (f"tiny:{late_line + 1}", 3, "dropped", "media")
    assert "not made within 3 s" in lost["reason"]
    account = read_account(out)
    assert account.open == [] and account.counts["dropped"] == 1


def test_a_sample_that_is_late_for_one_process_is_left_out_by_all(stalled, late_line):
    """Otherwise their rows differ, and they wait for each other."""
    children, out = stalled(late_line, "steps=4", "sample_seconds=4", "max_lost=0.5", rank=1, n=2)
    assert [child.wait(180) for child in children] == [0, 0], children[0].said
    (lost,) = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    assert lost["id"] == f"tiny:{late_line + 1}" and "by another process" in lost["reason"]
    assert read_account(out).open == []


def test_a_signal_reaches_processes_that_wait_for_one_whose_data_never_comes(stalled, late_line):
    children, out = stalled(late_line, "steps=6", "save_every=100", rank=1, n=2)
    children[0].until(lambda: lines(out) == 3)
    time.sleep(1)
    for child in children:  # as the launcher and Slurm do
        os.kill(child.pid, signal.SIGTERM)
    assert [child.wait(60) for child in children] == [0, 0], children[0].said
    assert [p.name for p in checkpoint.complete(out / "checkpoints")] == [checkpoint.name(3)]


def test_what_the_thread_raises_is_raised_by_who_waits():
    def fail():
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        within(5, fail)
    assert within(5, lambda: 7) == 7


def test_a_process_that_was_suspended_has_not_waited(monkeypatch):
    """The limit counts looks: one look may take an hour while the process is stopped."""
    monkeypatch.setattr(waiting, "LOOK", 0.05)
    clock = iter(range(0, 10**6, 3600))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    began = time.perf_counter()
    with pytest.raises(Overdue, match=r"within 0\.5 s"):
        within(0.5, lambda: time.sleep(5))
    assert time.perf_counter() - began > 0.4


def test_prefetch_is_one_step_ahead_and_ends_at_a_signal():
    made, stop = [], []
    steps = prefetch(lambda step: made.append(step) or step, 2, 6, stop)
    assert next(steps) == 2
    Made(lambda: time.sleep(0.2)).get()
    assert made == [2, 3], "one ahead, not two"
    stop.append(signal.SIGTERM)
    assert next(steps) is None
