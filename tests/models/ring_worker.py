"""One process of a gloo world: compares rows that several processes hold with the dense model, in float64.

test_ring.py starts it by runpy with RANK, SIZE, PORT and FILE; the first process writes {case: largest difference}.
"""
# ruff: noqa: F821

import copy
import itertools
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from vlm.models import sequence_parallel as spread
from vlm.models.attention import BACKENDS, AttentionBackend, ring, sdpa
from vlm.models.language import ExactRotary
from vlm.models.loss import shifted
from vlm.models.sequence.group import SequenceGroup
from vlm.models.sequence.sharding import LAYOUTS, TokenShard, zigzag
from vlm.models.specs import RopeScaling, load_preset
from vlm.models.vlm import make_model

CONTEXT, TOKENS = 313, 4


def difference(pairs) -> float:
    """Largest over pairs of (found, expected), in units of the largest expected entry of each."""
    worst = 0.0
    for found, expected in pairs:
        assert found.shape == expected.shape
        if expected.numel():
            worst = max(worst, (found - expected).abs().max().item() / max(1e-3, expected.abs().max().item()))
    return worst


# attention alone ------------------------------------------------------------------------------------------------------


def attention(group, kind, lengths, heads, key_heads, dtype=torch.float64) -> float:
    """Output and gradients of a pack of documents of these lengths, against the masked reference."""
    generator = torch.Generator().manual_seed(sum(lengths))
    borders = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    shape = sum(lengths), 8
    whole = [torch.randn(1, h, *shape, generator=generator).double() for h in (heads, key_heads, key_heads)]
    whole = [t.to(dtype).double().requires_grad_() for t in whole]
    weights = torch.randn(1, heads, *shape, generator=generator).to(dtype).double()
    expected = sdpa(*whole, None, borders, None)
    expected_grads = torch.autograd.grad((expected * weights).sum(), whole)
    shard = LAYOUTS[kind](borders, group.rank, group.size)

    def held(t):
        return shard.take(t.transpose(1, 2), 0).transpose(1, 2)

    inputs = [held(t.detach()).to(dtype).requires_grad_() for t in whole]
    out = BACKENDS[kind].attend(*inputs, None, shard.borders, None, group=group)
    grads = torch.autograd.grad((out * held(weights)).sum(), inputs)
    real = shard.places >= 0
    pairs = zip((out, *grads), map(held, (expected, *expected_grads)), strict=True)
    return difference((found[:, :, real], want[:, :, real]) for found, want in pairs)


# the whole model ------------------------------------------------------------------------------------------------------


def exact_model(kind="llama"):
    """The tiny model in float64 throughout, with gains at which every input matters.

    transformers' RMSNorm goes through float32 and would turn a difference of 1e-16 into one of 1e-7.
    """
    torch.manual_seed(1)
    model = make_model(load_preset("tiny-internvl2").with_language(kind=kind)).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "ls" in name:
                parameter.fill_(0.5)
            elif name.endswith("_proj.bias"):  # Qwen2's, zero in a fresh model
                parameter.normal_(std=0.5)
            elif parameter.dim() == 2 and "embed" not in name:
                parameter.mul_(4)
    for module in list(model.language_model.modules()):
        for name, child in module.named_children():
            if isinstance(child, LlamaRMSNorm | Qwen2RMSNorm):
                setattr(module, name, nn.RMSNorm(len(child.weight), eps=child.variance_epsilon, dtype=torch.float64))
    return model


def row(documents, seed=0, labelled=None, fractional=True):
    """A packed row from documents such as (5, "image", 3); labels on the last half of each (or of those named)."""
    generator = torch.Generator().manual_seed(seed)
    ids, positions, labels, borders, tiles = [], [], [], [0], 0
    for number, document in enumerate(documents):
        here, at = [], 0.0
        for part in document:
            if part == "image":
                tiles += 1
                here += [CONTEXT] * TOKENS
                positions += [at + k * 0.375 for k in range(TOKENS)]
            else:
                here += torch.randint(10, 300, (part,), generator=generator).tolist()
                positions += [at + k for k in range(part)]
            at = positions[-1] + 1.0
        start = len(here) // 2
        wanted = labelled is None or number in labelled
        labels += [t if wanted and i >= start and t != CONTEXT else -100 for i, t in enumerate(here)]
        ids += here
        borders.append(len(ids))
    size = 56
    return {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([labels]),
        "loss_weights": torch.rand(1, len(ids), generator=generator).double() + 0.5,
        "position_ids": torch.tensor([positions], dtype=torch.float64) if fractional else None,
        "cu_seqlens": torch.tensor(borders, dtype=torch.int32),
        "pixel_values": torch.randn(tiles, 3, size, size, generator=generator) if tiles else None,
    }


def compare(group, kind, batch, model=None, prepare=None) -> float:
    """Logits, loss and every parameter's gradient of a row that the group holds, against the dense model."""
    dense = (model or exact_model()).train()
    held = copy.deepcopy(dense)
    expected = dense(**batch)
    assert (expected.loss > 0) == (batch["labels"] != -100).any()  # else the comparison would be empty
    expected.loss.backward()
    spread.spread(held, group, kind)
    if prepare:
        prepare(held)
    found = held(**batch)
    assert found.loss.isfinite()
    found.loss.backward()
    shard = LAYOUTS[kind](batch["cu_seqlens"], group.rank, group.size)
    real = shard.places >= 0
    loss = found.loss.detach().clone()
    dist.all_reduce(loss, group=group.handle)
    pairs = [(loss, expected.loss), (found.logits[:, real], shard.take(expected.logits, 0)[:, real])]
    for ours, theirs in zip(held.parameters(), dense.parameters(), strict=True):
        total = torch.zeros_like(theirs) if ours.grad is None else ours.grad.clone()
        dist.all_reduce(total, group=group.handle)
        pairs.append((total, torch.zeros_like(theirs) if theirs.grad is None else theirs.grad))
    return difference(pairs)


PACK = [(9, "image", 6, "image", "image", 5), (7,), (2, "image", "image", 17), (1,), (13, "image")]
EVEN = [(8, "image", 4), (16,)]


def scaled(kind="llama"):
    model = exact_model(kind)
    scaling = RopeScaling(kind="dynamic", factor=2.0)
    model.language_model.model.rotary_emb = ExactRotary(16, 1e6, 12, scaling)
    return model


def only_one_answer(group, kind):
    """All labels in the first document's end, so that at least one process has none."""
    batch = row([(3, "image", 25), (40,)], labelled=())
    batch["labels"][0, 4] = batch["labels"][0, 5] = 77
    shard = LAYOUTS[kind](batch["cu_seqlens"], group.rank, group.size)
    target, _ = shifted(batch["labels"], None, batch["cu_seqlens"])
    without = torch.tensor(float((shard.take(target, -100) == -100).all()))
    dist.all_reduce(without, group=group.handle)
    assert without > 0
    return compare(group, kind, batch)


def no_label(group, kind):
    return compare(group, kind, row(PACK, labelled=()))


def recomputed(model):
    model.set_gradient_checkpointing(True)


def flagged(group):
    """Dummy tiles (flag 0) between real ones."""
    batch = row(PACK)
    flags = torch.tensor([1, 0, 1, 1, 1, 0, 1, 1, 0])
    tiles = torch.randn(len(flags), 3, 56, 56, generator=torch.Generator().manual_seed(3))
    tiles[flags == 1] = batch["pixel_values"]
    return compare(group, "ring", {**batch, "pixel_values": tiles, "image_flags": flags})


# faults that the comparison has to see --------------------------------------------------------------------------------


def whole_row_zigzag(cu_seqlens, rank, size):
    """As published: the whole row is cut, and the borders are divided."""
    whole = zigzag(cu_seqlens[[0, -1]], rank, size)
    return TokenShard(whole.places, cu_seqlens // size)


def mutated(group, name, kind="ring") -> float:
    """The comparison with a fault built in."""
    batch = row([(24, "image", 4), (16, "image", 12)], seed=group_seed(group))
    if name == "whole-row zigzag":
        LAYOUTS["ring"] = whole_row_zigzag
        try:
            return compare(group, kind, batch)
        finally:
            LAYOUTS["ring"] = zigzag
    if name == "wrong group":
        right = BACKENDS["ring"]
        everyone = SequenceGroup(dist.group.WORLD)
        BACKENDS["ring"] = AttentionBackend(lambda *given, group: ring.ring(*given, group=everyone), dense=False)
        try:
            return compare(group, kind, batch)
        finally:
            BACKENDS["ring"] = right
    right = spread.shifted
    assert name == "shift after split"
    places = LAYOUTS[kind](batch["cu_seqlens"], group.rank, group.size).places

    def late(labels, weights, cu_seqlens):
        target, weight = torch.full_like(labels, -100), torch.zeros_like(weights)
        local, local_weight = right(labels[:, places], weights[:, places], cu_seqlens // group.size)
        target[:, places], weight[:, places] = local, local_weight
        return target, weight

    spread.shifted = late
    try:
        return compare(group, kind, batch)
    finally:
        spread.shifted = right


def group_seed(group) -> int:
    """Another row for each group of the world."""
    return dist.get_rank() // group.size


def cases(size):
    """(name, call) of what a world of this size runs."""
    world = SequenceGroup(init_device_mesh("cpu", (1, size), mesh_dim_names=("data", "sequence")).get_group("sequence"))
    for lengths in ([16], [8 * size, 2 * size, 4 * size], [5, 8, 1, 24, 13], [1], [2, 1, 1]):
        yield f"ring attention {lengths}", lambda n=lengths: attention(world, "ring", n, 4, 2)
        yield f"ulysses attention {lengths}", lambda n=lengths: attention(world, "ulysses", n, 4, 2)
    yield "ring attention one key head", lambda: attention(world, "ring", [5, 30], 3, 1)
    yield "ring attention as many key heads", lambda: attention(world, "ring", [5, 30], 3, 3)
    yield "ulysses attention 12 over 3", lambda: attention(world, "ulysses", [5, 30], 12, 3)
    yield "float32 ring attention", lambda: attention(world, "ring", [5, 200], 4, 2, torch.float32)
    yield "bfloat16 ring attention", lambda: attention(world, "ring", [5, 200], 4, 2, torch.bfloat16)
    for kind in ("ring", "ulysses"):
        yield f"{kind} model", lambda k=kind: compare(world, k, row(PACK))
        yield f"{kind} model whole numbers", lambda k=kind: compare(world, k, row(PACK, fractional=False))
        yield f"{kind} model scaled rotary", lambda k=kind: compare(world, k, row(PACK, fractional=False), scaled())
        yield f"{kind} model qwen2", lambda k=kind: compare(world, k, row(PACK), exact_model("qwen2"))
        scaling = f"{kind} model qwen2 scaled rotary"
        yield scaling, lambda k=kind: compare(world, k, row(PACK, fractional=False), scaled("qwen2"))
        yield f"{kind} model text only", lambda k=kind: compare(world, k, row([(11,), (30,)]))
        yield f"{kind} model one tile", lambda k=kind: compare(world, k, row([(11, "image", 3), (30,)]))
        yield f"{kind} model no label here", lambda k=kind: only_one_answer(world, k)
        yield f"{kind} model no label anywhere", lambda k=kind: no_label(world, k)
        yield f"{kind} model recomputed", lambda k=kind: compare(world, k, row(PACK), prepare=recomputed)
    yield "ring model dummy tiles", lambda: flagged(world)
    yield "fault: whole-row zigzag", lambda: mutated(world, "whole-row zigzag")
    yield "fault: shift after split", lambda: mutated(world, "shift after split")
    if size == 4:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "sequence"))
        pair = SequenceGroup(mesh.get_group("sequence"))
        for kind in ("ring", "ulysses"):
            yield f"{kind} two groups", lambda k=kind: compare(pair, k, row(PACK, seed=group_seed(pair)))
        yield "fault: wrong group", lambda: mutated(pair, "wrong group")


def main(rank, size, port, file):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=size)
    torch.Tensor.float = torch.Tensor.double  # losses of this process are float64 too
    found = {}
    for name, call in cases(size):
        worst = torch.tensor(call())
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        found[name] = worst.item()
    if rank == 0:
        torch.save(found, file)
    dist.barrier()
    dist.destroy_process_group()


main(RANK, SIZE, PORT, FILE)
