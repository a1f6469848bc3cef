"""Loss arithmetic: packing, accumulation and ranks change nothing but the order of the sum."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vlm.train.run.loop import train
from vlm.train.run.stream import Stream, to_tensors

CPU = torch.device("cpu")


def loss_and_gradients(model, processor, rows):
    """Of a step: each row's share over the weight of all rows, accumulated as the loop does."""
    model.zero_grad()
    denominator = sum(row.weight for row in rows)
    loss = 0.0
    for row in rows:
        part = model(**to_tensors(row, processor, CPU), loss_denominator=denominator, logits=False).loss
        part.backward()
        loss += part.item()
    return loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1].keys() == other[1].keys() and len(one[1]) > 50
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", ["token", "sample", "square"])
def test_packed_equals_unpacked_in_loss_and_gradients(recipe, processor, model, kind):
    def rows(*overrides):
        return Stream(recipe(f"loss={kind}", *overrides), processor).step(0).rows

    packed, single = rows(), rows("batch.packing=none")
    assert len(packed) < len(single) == 6
    result = loss_and_gradients(model, processor, single)
    assert_same(loss_and_gradients(model, processor, packed), result)
    tight = rows("batch.max_tokens=320", "max_length=320")
    assert len(packed) < len(tight) < 6, "another way to accumulate"
    assert_same(loss_and_gradients(model, processor, tight), result)


def test_the_loss_of_a_step_is_the_mean_over_its_labels_not_over_its_rows(recipe, processor, model):
    rows = Stream(recipe("batch.packing=none"), processor).step(0).rows
    counts = [int((row.labels != -100).sum()) for row in rows]
    assert len(set(counts)) > 1, "unequal rows, else a mean of means would pass"
    total, labels = 0.0, 0
    with torch.no_grad():
        for row in rows:
            batch = to_tensors(row, processor, CPU)
            logits = model(
                batch["input_ids"], pixel_values=batch["pixel_values"], position_ids=batch["position_ids"]
            ).logits
            total += F.cross_entropy(logits[0, :-1], batch["labels"][0, 1:], reduction="sum").item()
            labels += int((batch["labels"][0, 1:] != -100).sum())
    loss, _ = loss_and_gradients(model, processor, rows)
    assert loss == pytest.approx(total / labels, rel=1e-5)


def test_a_row_without_labels_adds_zero_to_loss_and_gradients(recipe, processor, model):
    row = Stream(recipe("batch.packing=none", "batch.samples=1"), processor).step(0).rows[0]
    batch = to_tensors(row, processor, CPU)
    for silent in ({"labels": torch.full_like(batch["labels"], -100)}, {"loss_weights": batch["loss_weights"] * 0}):
        model.zero_grad()
        loss = model(**{**batch, **silent}, loss_denominator=row.weight, logits=False).loss
        loss.backward()
        assert loss.item() == 0.0
        assert all(torch.count_nonzero(p.grad) == 0 for p in model.parameters() if p.grad is not None)
        assert model.projector[1].weight.grad is not None


def test_a_text_only_step_gives_the_encoder_zero_gradients_not_none(recipe, processor, model):
    stream = Stream(recipe("batch.packing=none", "batch.samples=24"), processor)
    row = next(row for row in stream.step(0).rows if row.pixels is None)
    _, gradients = loss_and_gradients(model, processor, [row])
    encoder = [g for name, g in gradients.items() if name.startswith("encoder")]
    assert encoder and all(torch.count_nonzero(g) == 0 for g in encoder)


def first_losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_training_packed_and_unpacked_starts_with_the_same_losses(recipe, tmp_path):
    for packing in ("best_fit", "none"):
        train(recipe("steps=2", f"batch.packing={packing}"), tmp_path / packing, quiet=True)
    packed, single = first_losses(tmp_path / "best_fit"), first_losses(tmp_path / "none")
    assert packed[0] == pytest.approx(single[0], rel=1e-5)
    assert packed[1] == pytest.approx(single[1], rel=1e-4)


def test_the_gradient_norm_is_that_of_the_whole_step_before_clipping(recipe, processor, model, tmp_path):
    for clip in (1.0, 1e-3):
        train(recipe("steps=1", f"optimizer.clip={clip}"), tmp_path / str(clip), quiet=True)
    line = json.loads((tmp_path / "0.001/metrics.jsonl").read_text())
    _, gradients = loss_and_gradients(model, processor, Stream(recipe(), processor).step(0).rows)
    norm = np.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients.values()))
    assert line["grad_norm"] == pytest.approx(norm, rel=1e-4) and norm > 1


def test_frozen_parameters_stay_as_they_were_and_trained_ones_move(home, recipe, tmp_path):
    from safetensors.torch import load_file

    out = train(recipe("steps=2", "trainable=[projector.*]"), tmp_path, quiet=True)
    before, after = (load_file(p / "model.safetensors") for p in (home / "pretrained/tiny-internvl2", out))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("projector")}
    assert json.loads((tmp_path / "summary.json").read_text())["trained"] == {
        "projector": sum(t.numel() for n, t in before.items() if n.startswith("projector"))
    }


def test_another_family_trains_by_the_same_recipe(home, recipe, tmp_path):
    other = recipe("model.start=pretrained/tiny-convllava", "steps=12", "strides=null")
    train(other, tmp_path, quiet=True)
    losses = first_losses(tmp_path)
    assert losses[-1] < losses[0] - 1


def test_bfloat16_keeps_float32_weights_beside_it_at_every_stage(recipe, tmp_path):
    for stage in (0, 1):
        train(recipe("precision=bfloat16", f"zero.stage={stage}"), tmp_path / str(stage), quiet=True)
    assert first_losses(tmp_path / "0") == first_losses(tmp_path / "1")
