"""ZeRO-3 gathers a weight at each call of its module: ranks with unequally many labels must call alike."""

import json

import pytest
import torch

from vlm.train.run.loop import train


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("sequence", [1, 2])
def test_ranks_with_unequally_many_labels_do_not_wait_for_each_other(
    two_ranks, recipe, recipe_file, tmp_path, sequence
):
    train(recipe("steps=3"), tmp_path / "alone", quiet=True)
    sets = [f"sequence_parallel.size={sequence}"]
    two_ranks("zero3_worker.py", RECIPE=str(recipe_file), OUT=str(tmp_path / "two"), SETS=sets)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)


def test_a_model_that_answers_after_a_training_has_torchs_own_linear(recipe, tmp_path):
    own = torch.nn.functional.linear
    train(recipe("steps=1", "zero.stage=3"), tmp_path / "run", quiet=True)
    assert torch.nn.functional.linear is own
