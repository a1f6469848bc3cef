"""Ring attention: zigzag per document against contiguous chunks per document, and against dense on one process.

Critical path: at each step all wait for the process with the most pairs of query and key, counted from the schedule
that the code runs; efficiency is an equal share of all causal pairs over that path. Padding counts as waste. Wall time
is of forward and backward of one layer on two gloo processes with one thread each, of the same machine: a ratio on
CPUs shows the algorithm, not the speed over a network of GPUs. Bytes are what each process sends.
"""

import os
from functools import partial
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from harness import paired, report

from vlm.models.attention import varlen
from vlm.models.attention.ring import ring_attention
from vlm.models.sequence.group import SequenceGroup
from vlm.models.sequence.sharding import PADDING, RingBlock, TokenShard, schedule, zigzag, zigzag_blocks
from vlm.train.launch.launch import free_port

HEADS, KV_HEADS, SIZE = 4, 2, 64
RUNS = 7
COUNTED = {"one document": [32768], "pack": [12001, 2217, 10300, 678, 7572]}
TIMED = {"one document, timed": [4096], "pack, timed": [1501, 217, 1300, 78, 1000]}


def contiguous(cu_seqlens, rank, size):
    """Chunk r of each document for process r, padded to equal chunks."""
    parts, borders = [], [0]
    for start, end in pairwise(cu_seqlens.tolist()):
        chunk = -(-(end - start) // size)
        places = torch.arange(start + rank * chunk, start + (rank + 1) * chunk)
        parts.append(torch.where(places < end, places, PADDING))
        borders.append(borders[-1] + chunk)
    return TokenShard(torch.cat(parts), torch.tensor(borders, dtype=torch.int32))


def contiguous_blocks(borders, rank, source):
    """All of a process before, the triangle of our own, nothing of one behind."""
    held = [slice(*pair) for pair in pairwise(borders)]
    return [RingBlock(at, at, causal=source == rank) for at in held if source <= rank]


WAYS = {"zigzag": (zigzag, zigzag_blocks), "contiguous": (contiguous, contiguous_blocks)}


def efficiency(lengths: list[int], size: int, way: str) -> float:
    """An equal share of the causal pairs, over the pairs on the critical path."""
    layout, blocks = WAYS[way]
    borders = torch.tensor([0, *accumulate(lengths)])
    plans = [schedule(layout(borders, r, size).borders.tolist(), r, size, blocks) for r in range(size)]
    path = sum(max(sum(b.pairs for b in plan[step]) for plan in plans) for step in range(size))
    return sum(n * (n + 1) // 2 for n in lengths) / size / path


class Counted(SequenceGroup):
    """Counts bytes."""

    sent = 0

    def pass_on(self, tensor):
        Counted.sent += tensor.nbytes
        return super().pass_on(tensor)


def held(way: str, whole: list[torch.Tensor], borders: torch.Tensor, group: SequenceGroup):
    """(shard, call): our share of the inputs, and forward and backward on it."""
    layout, blocks = WAYS[way]
    shard = layout(borders, group.rank, group.size)
    local = [shard.take(t.detach().transpose(1, 2), 0).transpose(1, 2).requires_grad_() for t in whole]
    steps = schedule(shard.borders.tolist(), group.rank, group.size, blocks)
    weight = (shard.places != PADDING).float()[:, None].expand(1, HEADS, -1, SIZE)  # padding never has a label

    def call():
        dist.barrier()
        out = ring_attention(*local, steps, group)
        grads = torch.autograd.grad(out, local, weight)
        dist.barrier()
        return out, *grads

    return shard, call


def dense(whole: list[torch.Tensor], borders: torch.Tensor, group: SequenceGroup):
    """The whole on the first process; the others wait."""
    dist.barrier()
    result = None
    if group.rank == 0:
        out = varlen(*whole, None, borders, None)
        result = out, *torch.autograd.grad(out, whole, torch.ones_like(out))
    dist.barrier()
    return result


def process(rank: int, size: int, port: int, rows: list) -> None:
    """One of the processes that run the rings; the first adds the timed rows and reports."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=size)
    group = Counted(dist.group.WORLD)
    for name, lengths in TIMED.items():
        borders = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        generator = torch.Generator().manual_seed(0)
        heads = (HEADS, KV_HEADS, KV_HEADS)
        whole = [torch.randn(1, h, sum(lengths), SIZE, generator=generator, requires_grad=True) for h in heads]
        reference, worst = dense(whole, borders, group), 0.0
        ways = {way: held(way, whole, borders, group) for way in WAYS}
        for shard, call in ways.values():
            found, real = call(), shard.places != PADDING
            for ours, theirs in zip(found, reference or (), strict=rank == 0):
                worst = max(worst, (ours[:, :, real] - theirs[:, :, shard.places[real]]).abs().max().item())
        assert worst < 1e-4, worst
        Counted.sent = 0
        ours = ways["zigzag"][1]
        ours()
        row = {**counted(name, lengths, size), "bytes_sent_measured": Counted.sent, "max_difference": worst}
        for peer, call in (("contiguous", ways["contiguous"][1]), ("dense", partial(dense, whole, borders, group))):
            row |= {f"{key}_{peer}": value for key, value in paired(ours, call, RUNS).items() if key != "runs"}
        rows.append(row)
    if rank == 0:
        report("ring", rows)
    dist.destroy_process_group()


def counted(name: str, lengths: list[int], size: int) -> dict:
    """What needs no clock."""
    tokens = len(zigzag(torch.tensor([0, *accumulate(lengths)]), 0, size).places)
    kv = 2 * KV_HEADS * tokens * SIZE * 4
    return {
        "rows": name,
        "tokens": sum(lengths),
        "processes": size,
        "efficiency_zigzag": efficiency(lengths, size, "zigzag"),
        "efficiency_contiguous": efficiency(lengths, size, "contiguous"),
        "padding_share": 1 - sum(lengths) / (tokens * size),
        # forward: keys and values, W - 1 times; backward: again, and W times their gradients
        "bytes_sent": 2 * (size - 1) * kv + size * kv,
    }


def main() -> None:
    rows = [counted(name, lengths, size) for name, lengths in COUNTED.items() for size in (2, 4, 8)]
    mp.spawn(process, (2, free_port(), rows), nprocs=2)


if __name__ == "__main__":
    main()
