"""Rows that the rehearsal runs: one, several padded ones, a packed one; with images and labels."""

from itertools import accumulate

import torch

from support.tiny_models import random_ids, random_tiles


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
