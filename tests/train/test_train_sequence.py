"""Training with rows that several processes hold gives the losses of one process, under every ZeRO stage."""

import pytest
import torch
from safetensors.torch import load_file

from vlm.core.errors import ConfigError
from vlm.train.run.loop import train
from vlm.train.run.processes import check_mesh


@pytest.fixture
def spread(trained):
    """With a sequence group of two in `n` processes."""

    def spread(name, *sets, n=2, **kw):
        return trained(n, name, "sequence_parallel.size=2", *sets, **kw)

    return spread


@pytest.fixture
def same_run(numbers):
    def check(out, reference):
        """Losses, gradient norms and the exported weights."""
        assert numbers(out) == pytest.approx(numbers(reference), rel=2e-6)
        assert numbers(out, "grad_norm") == pytest.approx(numbers(reference, "grad_norm"), rel=1e-4)
        expected = load_file(reference / "model/model.safetensors")
        model = load_file(out / "model/model.safetensors")
        assert model.keys() == expected.keys()
        for name, tensor in model.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")

    return check


@pytest.mark.parametrize(
    "stage", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3]
)
def test_a_ring_of_two_trains_as_one_process_under_every_zero_stage(alone, spread, stage, same_run, numbers):
    reference, out = alone(), spread("ring", f"zero.stage={stage}")
    same_run(out, reference)
    assert numbers(out, "rows") == numbers(reference, "rows")
    assert 0 < max(numbers(out, "padding_share")) < 0.1


def test_ulysses_trains_alike(alone, spread, same_run):
    same_run(spread("ulysses", "sequence_parallel.kind=ulysses", "zero.stage=2"), alone())


@pytest.mark.slow
def test_recomputed_activations_train_alike(alone, spread, same_run):
    same_run(spread("again", "gradient_checkpointing=true", "zero.stage=3"), alone())


def test_two_rings_side_by_side_share_out_the_rows(alone, spread, same_run):
    sets = ("batch.packing=none", "steps=3")  # six rows a step, three for each ring
    reference = alone(*sets)
    same_run(spread("mesh", "zero.stage=2", *sets, n=4), reference)


@pytest.mark.slow
def test_a_ring_without_rows_adds_nothing(alone, spread, same_run):
    sets = ("batch.samples=1", "steps=3")
    same_run(spread("few", "zero.stage=3", *sets, n=4), alone(*sets))


def test_a_killed_ring_continues_with_the_same_losses(killed, spread, curve):
    sets = ("steps=8", "save_every=2", "zero.stage=2")
    whole, out = spread("whole", *sets), killed("sequence_parallel.size=2", *sets)
    assert spread("cut", *sets) == out
    assert curve(out) == curve(whole)


def test_a_size_that_does_not_divide_the_processes_is_refused(recipe, tmp_path):
    with pytest.raises(ConfigError, match=r"sequence_parallel.size is 3 with 4 processes"):
        check_mesh(4, 3)
    with pytest.raises(ConfigError, match="with 1 processes"):
        train(recipe("sequence_parallel.size=2"), tmp_path / "never", quiet=True)
    assert not (tmp_path / "never/recipe.json").exists()
