"""Processes: who we are, and the few collectives the loop needs. Only here and in attention is torch.distributed used."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def total(self, value: float) -> float:
        """Sum over all processes."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.item()

    def agree(self, value: bool) -> bool:
        """Whether any process says yes; the same answer everywhere."""
        return self.total(float(value)) > 0

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def world() -> Iterator[World]:
    """Join the process group torchrun describes in the environment; alone without it."""
    env = os.environ
    rank = int(env.get("RANK", "0"))
    size = int(env.get("WORLD_SIZE", "1"))
    local = int(env.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local)
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    host, port = env.get("MASTER_ADDR", "127.0.0.1"), int(env.get("MASTER_PORT", "0")) or free_port()
    # DeepSpeed reads these even for one process
    env.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local), MASTER_ADDR=host, MASTER_PORT=str(port))
    dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=size)
    try:
        yield World(rank, size, local, device)
    finally:
        dist.destroy_process_group()
