"""Numbers of a step: MFU against a peak, boards, spikes."""

import json
import sys

import numpy as np
import pytest

from vlm.core.errors import HardwareError, UnknownName
from vlm.core.extras import install_line
from vlm.train.plan.run_plan import RunPlan
from vlm.train.run.boards import START, WINDOW, Boards, is_spike
from vlm.train.run.speed import SpeedMeter
from vlm.train.run.stream import PackedRow


def test_a_spike_is_far_above_the_start_and_the_present():
    falling = [2.0] * START + [1.0] * WINDOW
    assert is_spike(falling, 6.0) and not is_spike(falling, 3.9) and not is_spike(falling[1:], 6.0)
    tiny = [2.0] * START + [0.001] * WINDOW
    assert not is_spike(tiny, 0.1), "noise around nothing"
    assert not is_spike([2.0] * START + [float("nan")] * WINDOW, 1.0)


def test_tensorboard_holds_each_number_once_also_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first in (0, 2):  # a kill after step 3, a checkpoint at 2
        board = Boards(tmp_path, ["tensorboard"], first=first)
        for step in range(first, 4):
            board.write({"step": step, "loss": 10.0 * first + step, "note": "text"})
        board.close()
    seen = EventAccumulator(str(tmp_path / "tensorboard"))
    seen.Reload()
    assert seen.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in seen.Scalars("loss")] == [(0, 0), (1, 1), (2, 22), (3, 23)]


def test_boards_that_are_not_there_are_named(tmp_path, monkeypatch):
    with pytest.raises(UnknownName, match="tensorbord"):
        Boards(tmp_path, ["tensorbord"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(HardwareError, match="needs wandb, which is not installed") as error:
        Boards(tmp_path, ["wandb"])
    assert error.value.fix == install_line("wandb")
    assert not list(tmp_path.iterdir())


def row(lengths, tiles, labels):
    n = sum(lengths)
    targets = np.full(n, -100)
    targets[:labels] = 1
    pixels = np.zeros((tiles, 56, 56, 3), np.uint8) if tiles else None
    borders = np.cumsum([0, *lengths]).astype(np.int32)
    return PackedRow(np.zeros(n, int), targets, np.ones(n), np.arange(n), borders, pixels, ["a"])


def test_mfu_counts_documents_labels_and_tiles(recipe, monkeypatch):
    monkeypatch.setattr("vlm.train.run.speed.peak_here", lambda precision: 1e9)
    meter = SpeedMeter(RunPlan.resolve(recipe()), 2)

    def mfu(*rows, seconds=1.0):
        return meter.line(rows, seconds, 0.5)["mfu"]

    one = mfu(row([100], 0, 10))
    assert one > 0 and mfu(row([100], 0, 10), seconds=2.0) == pytest.approx(one / 2)
    assert mfu(row([100], 0, 10), row([100], 0, 10)) == pytest.approx(2 * one)
    assert mfu(row([50, 50], 0, 10)) < one < mfu(row([100], 1, 10)), "documents attend within; tiles cost"
    assert mfu(row([100], 0, 90)) > one
    work = meter.work
    expected = 100 * work.token + 5050 * work.pair + 10 * work.label
    assert one == pytest.approx(expected / 2e9)
    line = meter.line([row([100], 0, 10)], 1.0, 0.5)
    assert line["data_wait_s"] == 0.5 and 0.05 < line["memory_gb"] < 100 and json.dumps(line)
