"""One of two processes that hold a row on a pretended device: run by test_shared.py with RANK, PORT and FILE.

The collectives are gloo's, on the memory behind the device. For each kind the first process writes how far loss and
gradients are from those of the whole row on the CPU, and the waits of a forward and backward pass.
"""
# ruff: noqa: F821

import os

import torch
import torch.distributed as dist

from support.pretended import waits
from support.tiny_models import lively_model
from vlm.models.attention import kernels, ring
from vlm.models.sequence.group import SequenceGroup
from vlm.models.sequence_parallel import spread

DEVICE = "pretended:0"


def compare(kind: str, inputs: dict, group: SequenceGroup) -> dict:
    """Loss and gradients of the shared row against the whole one; and the waits."""
    whole, held = lively_model().train(), lively_model().train().to(DEVICE)
    wanted = whole(**inputs, logits=False).loss
    wanted.backward()
    spread(held, group, kind)
    stays = ("pixel_values", "cu_seqlens")
    given = {k: v if v is None or k in stays else v.to(DEVICE) for k, v in inputs.items()}
    with waits() as count:
        loss = held(**given, logits=False).loss
        loss.backward()
    total = loss.detach().cpu()
    dist.all_reduce(total)
    worst = (total - wanted).abs().item() / wanted.abs().item()
    for (name, ours), theirs in zip(held.named_parameters(), whole.parameters(), strict=True):
        assert ours.device == torch.device(DEVICE), name
        gradient = torch.zeros_like(theirs) if ours.grad is None else ours.grad.cpu()
        dist.all_reduce(gradient)
        reference = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        scale = max(reference.abs().max().item(), 1e-2)
        worst = max(worst, (gradient - reference).abs().max().item() / scale)
    return {"worst": worst, "waits": {k: n for k, n in count.items() if k != "behind"}}


def main(rank: int, port: int, file) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("cpu:gloo,pretended:gloo", rank=rank, world_size=2)
    ring.block_kernel = lambda *_: kernels.CpuKernel()  # the numbers are in CPU memory; flash-attn is not here
    group = SequenceGroup(dist.group.WORLD)
    inputs = torch.load(INPUTS)
    found = {
        f"{kind} {name}": compare(kind, row, group) for kind in ("ring", "ulysses") for name, row in inputs.items()
    }
    if rank == 0:
        torch.save(found, file)
    dist.barrier()
    dist.destroy_process_group()


main(RANK, PORT, FILE)
