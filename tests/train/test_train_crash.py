"""Killed at any call that changes a file, before or after it, a run goes on to the same bytes."""

import signal

import pytest

POINTS = 6


@pytest.fixture
def crash(vlm, recipe_file, tmp_path):
    """Run four steps with a checkpoint after each, and kill at a call; the stage folder and the process."""

    def crash(name: str, **env: str):
        run = tmp_path / name
        sets = [x for s in ("steps=4", "save_every=1", "keep=1") for x in ("--set", s)]
        args = ("train", "-r", recipe_file, "--run", run, "--quiet", *sets)
        return vlm(*args, env={"FOLDER": str(run), **env}, script="crash_worker.py"), run / "train/tiny"

    return crash


def files(out, *names):
    return {name: (out / name).read_bytes() if (out / name).exists() else None for name in names}


SAME = ("model/model.safetensors", "model/config.json", "ledger.jsonl", "summary.json", "recipe.json")


@pytest.fixture
def whole(crash, tmp_path):
    """The stage that nothing happened to, and its number of calls."""
    child, out = crash("whole", COUNT=str(tmp_path / "count"))
    assert child.wait(120) == 0, child.said
    return out, int((tmp_path / "count").read_text())


def survives(crash, whole, curve, point):
    out, _ = whole
    child, cut = crash(f"cut{point}", CRASH=str(point))
    assert child.wait(120) == -signal.SIGKILL, f"{point}: {child.said}"
    child, _ = crash(f"cut{point}")
    assert child.wait(120) == 0, f"{point}: {child.said}"
    assert curve(cut) == curve(out), point
    assert files(cut, *SAME) == files(out, *SAME), point
    left = {p.relative_to(cut) for p in cut.rglob(".*")} - {p.relative_to(out) for p in out.rglob(".*")}
    assert not left, f"{point}: {left} is left"


def test_killed_at_some_calls_the_run_goes_on_to_the_same_bytes(crash, whole, curve):
    """The last calls are left out: their number is not quite the same in each run."""
    last = 2 * whole[1] - 10
    assert last > 80
    for i in range(POINTS):
        survives(crash, whole, curve, 2 + i * last // POINTS // 2 * 2 + i % 2)


@pytest.mark.slow
def test_killed_at_every_call_the_run_goes_on_to_the_same_bytes(crash, whole, curve):
    for point in range(2, 2 * whole[1] - 10):
        survives(crash, whole, curve, point)
