"""Forward and backward on a device: padded, packed and V2PE rows, every backend, LoRA, a training step."""

from itertools import accumulate

import pytest
import torch

from support.tiny_models import random_ids, random_tiles
from vlm.models.attention import local
from vlm.models.specs import RopeScaling
from vlm.train.parameters.lora import add_adapters
from vlm.train.parameters.optim import freeze, make_optimizer
from vlm.train.recipe.recipe import Lora, Optimizer


def moved(inputs, device):
    """The tensors of keyword arguments on a device."""
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


def one_row(model, positions="v2pe"):
    """A row with an image and labels behind it."""
    ids = random_ids(model, 3, "image", 9)
    labels = ids.clone()
    labels[:, :-7] = -100
    counted = torch.arange(ids.shape[1])[None]
    return {
        "input_ids": ids,
        "pixel_values": random_tiles(model, 1),
        "position_ids": counted * 0.5 if positions == "v2pe" else None,
        "labels": labels,
    }


def padded_rows(model):
    """Two rows, the shorter one padded on the left; one dummy tile among two."""
    long, short = random_ids(model, 4, "image", 8), random_ids(model, 5, seed=1)
    ids = torch.zeros_like(long).repeat(2, 1)
    mask = torch.zeros_like(ids)
    for row, found in enumerate((long, short)):
        ids[row, -found.shape[1] :] = found
        mask[row, -found.shape[1] :] = 1
    labels = ids.masked_fill((mask == 0) | (ids == model.spec.image_tokens.context_id), -100)
    flags = torch.tensor([1, 0])
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": random_tiles(model, 2),
        "image_flags": flags,
        "labels": labels,
    }


def packed_row(model, positions="v2pe"):
    """Three documents in a row."""
    parts = [random_ids(model, 4, "image", 6), random_ids(model, 7, seed=1), random_ids(model, 2, "image", 3, seed=2)]
    ids = torch.cat(parts, dim=1)
    lengths = [part.shape[1] for part in parts]
    counted = torch.cat([torch.arange(n) for n in lengths])[None]
    return {
        "input_ids": ids,
        "pixel_values": random_tiles(model, 2),
        "position_ids": counted * 0.5 if positions == "v2pe" else None,
        "cu_seqlens": torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        "labels": ids.masked_fill(ids == model.spec.image_tokens.context_id, -100),
        "loss_weights": torch.linspace(0.5, 1.5, ids.shape[1])[None],
    }


def compare(pair, inputs, device, close):
    """Logits, loss and gradients of both models."""
    here, there = pair
    wanted, found = here(**inputs), there(**moved(inputs, device))
    close(found.logits, wanted.logits)
    close(found.loss, wanted.loss)
    wanted.loss.backward()
    found.loss.backward()
    for (name, ours), theirs in zip(here.named_parameters(), there.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            close(theirs.grad, ours.grad, rtol=2e-3)


def test_a_row_of_every_family(preset, pair, device, close):
    models = pair(preset)
    compare(models, one_row(models[0]), device, close)


@pytest.mark.parametrize("rows", [one_row, packed_row])
def test_plain_positions_beyond_the_trained_length(rows, pair, device, close):
    models = pair(max_positions=8, rope_scaling=RopeScaling(kind="dynamic", factor=2.0))
    compare(models, rows(models[0], positions="plain"), device, close)


def flash_stand_in(q, k, v, borders_q, borders_k, longest_q, longest_k, softmax_scale, causal):
    """Attention by flash-attn's interface; like the kernel it takes borders on the device of the queries."""
    assert q.device == k.device == borders_q.device == borders_k.device
    parts = zip(*(t.split(b.diff().tolist()) for t, b in ((q, borders_q), (k, borders_k), (v, borders_k))), strict=True)
    rows = (local.causal(*(t.transpose(0, 1)[None] for t in part), softmax_scale) for part in parts)
    return torch.cat([row[0].transpose(0, 1) for row in rows])


@pytest.mark.parametrize("rows", [one_row, padded_rows, packed_row])
@pytest.mark.parametrize("backend", ["auto", "sdpa", "varlen", "flash_attention_2"])
def test_every_backend(backend, rows, pair, device, close, monkeypatch):
    monkeypatch.setattr(local, "flash_kernel", lambda *_: flash_stand_in)
    models = pair()
    for model in models:
        model.set_attention(backend)
    compare(models, rows(models[0]), device, close)


def test_inputs_that_stay_on_the_cpu_where_the_interface_allows_it(pair, device, close):
    """Borders and flags are small and known to the host: they may stay there."""
    here, there = pair()
    for rows, stays in ((packed_row, "cu_seqlens"), (padded_rows, "image_flags")):
        inputs = rows(here)
        found = there(**(moved(inputs, device) | {stays: inputs[stays]}))
        close(found.logits, here(**inputs).logits)


def test_text_alone_reaches_the_encoder_in_training(pair, device, close):
    models = pair()
    for model in models:
        model.train()
    inputs = {"input_ids": random_ids(models[0], 9), "labels": random_ids(models[0], 9)}
    compare(models, inputs, device, close)
    assert models[1].projector[1].weight.grad is not None


def test_recomputed_layers(preset, pair, device, close):
    models = pair(preset)
    for model in models:
        model.train().set_gradient_checkpointing(True)
    compare(models, packed_row(models[0]), device, close)


def test_images_of_unequal_size_one_by_one(pair, device, close):
    here, there = pair("tiny-convllava")
    side = here.image_size
    images = [torch.randn(3, side, side), torch.randn(3, side, side * 2)]
    close(there.encode_images([i.to(device) for i in images]), here.encode_images(images))


@pytest.mark.parametrize("lora", [False, True])
def test_training_steps_with_a_plain_optimizer(lora, pair, device, close):
    """Adapters, frozen parts, AdamW, clipping: two steps without DeepSpeed."""
    here, there = pair()
    settings = Optimizer(lr=1e-3, weight_decay=0.1, groups={} if lora else {"projector.*": 1e-4})
    trained = {}
    for model, where in ((here, "cpu"), (there, device)):
        patterns = ("projector.*", "language_model.*")
        if lora:
            add_adapters(model, Lora(rank=4, alpha=8, targets=("language_model.model.layers.*",)), seed=3)
            patterns = ("*.lora_A.*", "*.lora_B.*")
            model.to(where)
        freeze(model, patterns)
        optimizer = make_optimizer(model.train(), settings)
        inputs = moved(packed_row(here), where)
        losses = []
        for _ in range(2):
            loss = model(**inputs, logits=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss)
        trained[where] = losses, [p for p in model.parameters() if p.requires_grad]
    for found, wanted in zip(trained[device][0], trained["cpu"][0], strict=True):
        close(found, wanted)
    assert trained["cpu"][0][1] < trained["cpu"][0][0]
    for found, wanted in zip(trained[device][1], trained["cpu"][1], strict=True):
        close(found, wanted, rtol=5e-2 if lora else 5e-3)
