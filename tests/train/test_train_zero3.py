"""ZeRO-3 gathers a weight at each call of its module: ranks with unequally many labels must call alike."""

import json
import runpy
from pathlib import Path

import pytest

from vlm.train.launch import free_port
from vlm.train.loop import train

WORKER = str(Path(__file__).with_name("zero3_worker.py"))


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("sequence", [1, 2])
def test_ranks_with_unequally_many_labels_do_not_wait_for_each_other(
    fork_server, recipe, recipe_file, home, tmp_path, sequence
):
    train(recipe("steps=3"), tmp_path / "alone", quiet=True)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "VLM_HOME": str(home)}
    given = {"RECIPE": str(recipe_file), "OUT": str(tmp_path / "two"), "SETS": [f"sequence_parallel.size={sequence}"]}
    ranks = [
        fork_server.Process(
            target=runpy.run_path,
            args=(WORKER, {"ENV": {**shared, "RANK": r, "LOCAL_RANK": r}, **given}, "worker"),
            daemon=True,
        )
        for r in "01"
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(90)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    assert codes == [0, 0]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
