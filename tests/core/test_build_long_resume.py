"""Long-MR: what a killed, repeated or crowded build leaves, and what is refused."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support import long_world as world_module
from vlm.core.errors import ConfigError, DataError, FetchError, LockedError, UnknownName, VlmError
from vlm.core.home import locked
from vlm.core.synth.long import sharded_build
from vlm.core.synth.long.budget import Budget
from vlm.core.synth.long.long_mr import LongMrOptions, build_long_mr

build, tree = world_module.build, world_module.tree

BUDGETS = tuple(map(Budget.parse, ("1500", "4K", "2K-3K")))
OPTIONS = LongMrOptions(BUDGETS, train=6, val=6, val_share=0.4)
SMALL = LongMrOptions((Budget(900, 900),), ("retrieval-image",), train=9, val=3, val_share=0.4, image_share=0.3)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return world_module.make_world(tmp_path_factory.mktemp("world"))


def test_the_number_of_workers_does_not_matter_and_a_second_build_writes_nothing(world, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    build(world, one, SMALL)
    assert build(world, two, SMALL, workers=2) == "built"
    assert tree(one) == tree(two)
    before = {p: p.stat().st_mtime_ns for p in one.rglob("*") if p.is_file() and not p.name.startswith(".lock")}
    assert build(world, one, SMALL) == "present"
    assert before == {p: p.stat().st_mtime_ns for p in before}
    (one / "mini.json").unlink()
    assert build(world, one, SMALL) == "built"
    assert tree(one) == tree(two)
    assert build(world, two, replace(SMALL, seed=1)) == "built"
    assert tree(one)["train/annotations/retrieval-image.jsonl"] != tree(two)["train/annotations/retrieval-image.jsonl"]


def test_a_build_that_stops_anywhere_resumes_to_the_same_tree(world, tmp_path, monkeypatch):
    build(world, tmp_path / "whole", SMALL)
    expected = tree(tmp_path / "whole")
    saved = sharded_build.write_json
    for stop in (2, 3, 5):
        calls = 0

        def dying(path, value, stop=stop):
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt
            saved(path, value)

        out = tmp_path / f"stop{stop}"
        monkeypatch.setattr(sharded_build, "write_json", dying)
        with pytest.raises(KeyboardInterrupt):
            build(world, out, SMALL)
        assert not (out / ".vlm-manifest.json").exists()
        monkeypatch.setattr(sharded_build, "write_json", saved)
        build(world, out, SMALL)
        assert tree(out) == expected


def test_a_build_that_stops_while_files_are_moved_resumes_to_the_same_tree(world, tmp_path, monkeypatch):
    import vlm.core.fetch.manifest as manifest

    build(world, tmp_path / "whole", SMALL)
    saved = manifest.write_json

    def dying(path, value, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(manifest, "write_json", dying)
    with pytest.raises(KeyboardInterrupt):
        build(world, tmp_path / "out", SMALL)
    monkeypatch.setattr(manifest, "write_json", saved)
    moved = next((tmp_path / "out" / "train" / "images" / "pool").iterdir())
    moved.write_bytes(b"damaged meanwhile")
    build(world, tmp_path / "out", SMALL)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
def main():
    from support.long_world import ruler
    from vlm.core.synth.long.budget import Budget
    from vlm.core.synth.long.long_mr import LONG_TASKS, LongMrOptions, build_long_mr
    world = Path(sys.argv[1])
    options = LongMrOptions((Budget(900, 900),), ("retrieval-image", "counting-text"), train=40, val=10,
                            val_share=0.4, image_share=0.3)
    folders = {"images": [world / "images"], "texts": [world / "text"]}
    build_long_mr(Path(sys.argv[2]), options, ruler(world), **folders, workers=2)
if __name__ == "__main__":
    main()
"""


def files_in(folder: Path) -> int:
    """How far a build has come."""
    return sum(len(names) for _, _, names in os.walk(folder))


@pytest.mark.slow
def test_thirty_kills_at_random_points_with_two_workers_end_in_the_same_tree(world, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(KILLED)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, str(script), str(world)]
    subprocess.run([*command, str(whole), str(Path(__file__).parents[1])], check=True)
    rng = np.random.default_rng(0)
    kills = finished = 0
    while kills < 30:
        process = subprocess.Popen([*command, str(out), str(Path(__file__).parents[1])])
        start, more = files_in(out), int(rng.integers(0, 60))
        while process.poll() is None and files_in(out) < start + more:
            time.sleep(0.02)
        time.sleep(float(rng.uniform(0, 0.2)))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        elif process.returncode == 0:  # it was quicker: once more from the start
            finished += 1
            shutil.rmtree(out)
        process.wait()
        if finished > 40:
            pytest.fail("the builds are too quick to be killed")
    subprocess.run([*command, str(out), str(Path(__file__).parents[1])], check=True)
    assert tree(out) == tree(whole)


def test_bad_input_is_refused_before_anything_is_written(world, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UnknownName, match="retrieval-text"):
        build(world, out, LongMrOptions(BUDGETS, ("retrieval-txt",)))
    with pytest.raises(ConfigError, match=r"take \d+ tokens, the budget is 120"):
        build(world, out, LongMrOptions((Budget.parse("120"),), train=1, val=0, val_share=0.4))
    with pytest.raises(ConfigError, match="nothing to build"):
        build(world, out, LongMrOptions(BUDGETS, train=0, val=0))
    with pytest.raises(DataError, match="needs 4 different source images"):
        build(world, out, LongMrOptions(BUDGETS, ("retrieval-image",), val_share=0.01, train=0, val=1))
    ruler = world_module.ruler(world)
    with pytest.raises(DataError, match="no such file or folder"):
        build_long_mr(out, OPTIONS, ruler, images=[tmp_path / "none"], texts=[world / "text"])
    with pytest.raises(DataError, match="no text to build from"):
        build_long_mr(out, OPTIONS, ruler, images=[world / "images"], texts=[world / "images"])
    with pytest.raises(DataError, match="no images to build from"):
        build_long_mr(out, OPTIONS, ruler, images=[world / "text"], texts=[world / "text"])
    assert not out.exists()
    (tmp_path / "file").write_text("")
    for place_ in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none/here")):
        with pytest.raises((FetchError, DataError), match="cannot"):
            build(world, place_, SMALL)


@pytest.mark.parametrize("text", ["", "4X", "-5", "8K-4K", "0", "1.5K"])
def test_a_text_that_is_not_a_length_is_refused(text):
    with pytest.raises(ConfigError, match="--tokens"):
        Budget.parse(text)


def test_lengths_and_their_names():
    assert Budget.parse("16K-32K") == Budget.parse("16-32k") == Budget(16384, 32768)
    assert Budget.parse("1M").low == 1048576
    assert (Budget.parse("56K-64K").name, Budget.parse("1000").name) == ("56_64", "1000_1000")


def test_two_builds_in_one_folder_are_refused(world, tmp_path):
    with locked(tmp_path / "out", "vlm data build long-mr --out out"):
        process = multiprocessing.get_context("fork").Process(target=_try, args=(world, tmp_path / "out"))
        process.start()
        process.join(60)
    assert process.exitcode == LockedError.exit_code


def _try(world: Path, out: Path) -> None:
    try:
        build(world, out, SMALL)
    except VlmError as error:
        sys.exit(error.exit_code)
