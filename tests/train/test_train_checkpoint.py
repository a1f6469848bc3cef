"""Checkpoints: resumed by two processes, half written, and on a full disk."""

import json
import shutil
import subprocess

import pytest

from vlm.train.run import checkpoint
from vlm.train.run.loop import train

STEPS = ("steps=6", "save_every=3", "keep=9")


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def unfinish(out):
    """As a kill after the last saved step leaves it."""
    shutil.rmtree(out / "model")


def test_zero_0_continues_with_another_number_of_processes_and_the_same_samples(recipe, recipe_file, ranks, tmp_path):
    out = tmp_path / "run/train/tiny"
    train(recipe(*STEPS), out, quiet=True)
    alone = losses(out)
    unfinish(out)
    sets = [x for s in STEPS for x in ("--set", s)]
    ranks(2, "train", "-r", recipe_file, "--run", tmp_path / "run", "--quiet", *sets)
    assert (out / "model/config.json").exists() and len(alone) == 6
    assert losses(out) == pytest.approx(alone, rel=1e-4), "steps 3 to 5 were taken by two"


def test_half_written_folders_are_told_and_the_one_before_is_used(recipe, tmp_path, capfd):
    train(recipe(*STEPS), tmp_path, quiet=True)
    before = losses(tmp_path)
    unfinish(tmp_path)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step-00000003", folder / "step-00000005")
    (folder / "step-00000005" / checkpoint.MANIFEST).unlink()
    shutil.copytree(folder / "step-00000003", folder / ".step-00000004.tmp")
    (folder / ".latest.77.tmp").touch()
    with pytest.warns(RuntimeWarning, match="step-00000005: half-written.*going back"):
        train(recipe(*STEPS), tmp_path, quiet=True)
    assert "removed" in capfd.readouterr().err and not list(folder.glob(".*"))
    assert losses(tmp_path) == before


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB: a checkpoint of the tiny model takes 2.5."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_is_really_full_is_named_and_the_last_checkpoint_stays(small_disk, vlm, recipe_file):
    sets = [x for s in ("steps=6", "save_every=2") for x in ("--set", s)]
    child = vlm("train", "-r", recipe_file, "--run", small_disk, "--quiet", *sets)
    assert child.wait(120) == 1, child.said
    assert "error: cannot write" in child.said and "free space" in child.said and "Traceback" not in child.said
    kept = checkpoint.complete(small_disk / "train/tiny/checkpoints")
    assert [p.name for p in kept] == ["step-00000002"] and checkpoint.damage(kept[0]) is None
    assert not list(kept[0].parent.glob(".*tmp"))
