"""Longer rows are fewer passes of the same step: losses, gradient norms and weights stay, on one process and on two."""

import pytest
import torch
from safetensors.torch import load_file

ROWS = {"short": 300, "middle": 512, "long": 1600}


@pytest.fixture
def assert_same(numbers):
    """The same curve and the same weights, to the order of float32 sums."""

    def assert_same(out, reference):
        assert numbers(out) == pytest.approx(numbers(reference), rel=1e-4)
        assert numbers(out, "grad_norm") == pytest.approx(numbers(reference, "grad_norm"), rel=1e-3)
        for key in ("samples", "labels", "useful_tokens"):
            assert numbers(out, key) == numbers(reference, key), "the global batch"
        one, other = (load_file(folder / "model/model.safetensors") for folder in (out, reference))
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, other[name], rtol=1e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")

    return assert_same


@pytest.mark.parametrize("loss", ["token", "square"])
@pytest.mark.parametrize("processes", [1, 2])
def test_the_length_of_rows_changes_neither_losses_nor_weights(trained, numbers, assert_same, processes, loss):
    common = ("max_length=300", f"loss={loss}", "steps=4", "batch.samples=12", "zero.stage=3")
    reference = trained(1, "reference", *common, "batch.packing=none")
    passes = {}
    for name, tokens in ROWS.items():
        out = trained(processes, name, *common, f"batch.max_tokens={tokens}")
        assert_same(out, reference)
        passes[name] = sum(-(-rows // processes) for rows in numbers(out, "rows"))
    assert passes["long"] < passes["middle"] < passes["short"] < 4 * 12


def test_two_processes_share_a_step_that_one_row_could_hold(trained, numbers):
    """The limit of a row says what memory holds, not how many GPUs work."""
    for processes in (1, 2):
        out = trained(processes, str(processes), "steps=2", "batch.max_tokens=100000")
        assert set(numbers(out, "rows")) == {processes}
        assert max(numbers(out, "padding_share")) == 0
