"""Rows that two processes hold together, each on a device of its own: ring and Ulysses, forward and backward."""

import multiprocessing
import runpy
from pathlib import Path

import pytest
import torch

from support.rehearsed_rows import packed_row
from support.tiny_models import lively_model
from vlm.train.launch.launch import free_port

WORKER = Path(__file__).with_name("shared_worker.py")


@pytest.fixture(scope="module")
def found(kind, tmp_path_factory):
    """What both kinds of two processes found."""
    if kind == "cuda":
        pytest.skip("two processes on GPUs need flash-attn and nccl: not in this list yet")
    folder, model = tmp_path_factory.mktemp("shared"), lively_model()
    rows = {
        "v2pe": packed_row(model),
        "plain": packed_row(model, positions="plain"),
        "text": packed_row(model) | {"pixel_values": None, "input_ids": packed_row(model)["labels"].clamp(min=0)},
    }
    torch.save(rows, folder / "rows.pt")
    given = {"PORT": free_port(), "FILE": folder / "found.pt", "INPUTS": folder / "rows.pt"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vlm.models.sequence_parallel"])
    children = [
        context.Process(target=runpy.run_path, args=(str(WORKER), {"RANK": r, **given}, "worker"), daemon=True)
        for r in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(200)
    codes = [child.exitcode for child in children]
    for child in children:
        child.kill()
    assert codes == [0, 0]
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize("row", ["v2pe", "plain", "text"])
@pytest.mark.parametrize("split", ["ring", "ulysses"])
def test_a_row_on_two_devices_has_the_loss_and_gradients_of_the_whole(split, row, found):
    assert found[f"{split} {row}"]["worst"] < 2e-3
