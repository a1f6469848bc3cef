"""Forward and backward on a device: padded, packed and V2PE rows, every backend, LoRA, a training step."""

import pytest
import torch

from support.rehearsed_rows import moved, one_row, packed_row, padded_rows
from support.tiny_models import random_ids
from vlm.models.attention import local
from vlm.models.specs import RopeScaling
from vlm.train.parameters.lora import add_adapters
from vlm.train.parameters.optim import freeze, make_optimizer
from vlm.train.recipe.recipe import Lora, Optimizer


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
