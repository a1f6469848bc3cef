"""Two gloo ranks train as one process does, and all ZeRO stages train alike."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from vlm.train.run import checkpoint


@pytest.fixture
def two(trained):
    return partial(trained, 2)


def test_zero_0_1_2_3_on_two_ranks_equal_one_process(alone, two, numbers):
    reference = alone()
    exported = load_file(reference / "model/model.safetensors")
    for stage in (0, 1, 2, 3):
        out = two(f"zero{stage}", f"zero.stage={stage}")
        assert numbers(out) == pytest.approx(numbers(reference), rel=1e-4), stage
        assert numbers(out, "grad_norm") == pytest.approx(numbers(reference, "grad_norm"), rel=1e-3), stage
        model = load_file(out / "model/model.safetensors")
        assert model.keys() == exported.keys()
        for name, tensor in model.items():
            torch.testing.assert_close(tensor, exported[name], rtol=1e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("stage", [2, 3])
def test_optimizer_states_on_the_host_change_nothing(alone, two, numbers, stage):
    out = two(f"offload{stage}", f"zero.stage={stage}", "zero.offload=true")
    assert numbers(out) == pytest.approx(numbers(alone()), rel=1e-4)
    assert numbers(out, "grad_norm") == pytest.approx(numbers(alone(), "grad_norm"), rel=1e-3)


def test_a_rank_without_rows_adds_nothing(alone, two, numbers):
    reference, out = alone("batch.samples=1"), two("few", "batch.samples=1", "zero.stage=2")
    assert numbers(out) == pytest.approx(numbers(reference), rel=1e-4)
    assert numbers(out, "grad_norm") == pytest.approx(numbers(reference, "grad_norm"), rel=1e-3)


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3])
def test_two_ranks_killed_continue_with_the_same_losses(killed, two, curve, stage):
    sets = (f"zero.stage={stage}", "steps=8", "save_every=2", "trainable=[projector.*,language_model.*]")
    whole, out = two("whole", *sets), killed(*sets)
    assert two("cut", *sets) == out
    assert curve(out) == curve(whole)


def test_a_stop_of_one_rank_saves_on_both(cut, tmp_path, numbers):
    pair, out = cut("steps=200"), tmp_path / "cut/train/tiny"
    pair[0].until(lambda: (out / "metrics.jsonl").exists() and len(numbers(out)) > 1)
    pair[1].process.terminate()
    assert [child.wait() for child in pair] == [0, 0]
    assert "resume me" in pair[0].said and "resume me" not in pair[1].said
    assert [p.name for p in checkpoint.complete(out / "checkpoints")] == [checkpoint.name(len(numbers(out)))]


def test_a_refusal_of_the_first_rank_ends_the_others_quietly(two, ranks, recipe_file, tmp_path):
    two("done", "steps=1")
    again = ("train", "-r", recipe_file, "--run", tmp_path / "done", "--quiet", "--set", "steps=1")
    children = ranks(2, *again)
    assert [child.wait() for child in children] == [0, 0]
    first, second = ranks(2, *again, "--set", "seed=9", expect=2)
    assert "seed: 0 -> 9" in first.said
    assert second.wait() == 0 and "rror" not in second.said


def test_too_many_lost_end_both_ranks_alike(home, two, records, tmp_path, ranks, recipe_file):
    lines = [json.dumps(r) for r in records]
    lines[3] = "{"
    (home / "dataset/tiny/torn.jsonl").write_text("\n".join(lines) + "\n")
    entry = [{"name": "torn", "file": "dataset/tiny/torn.jsonl", "root": "dataset/tiny"}]
    sets = ("--set", f"data={json.dumps(entry)}", "--set", "steps=4")
    first, second = ranks(2, "train", "-r", recipe_file, "--run", tmp_path / "lost", "--quiet", *sets, expect=3)
    assert "1 of" in first.said and second.wait() == 3
    entries = (tmp_path / "lost/train/tiny/ledger.jsonl").read_text().splitlines()
    assert [json.loads(e)["id"] for e in entries] == ["torn:4"]
