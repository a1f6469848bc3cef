"""Processes: who we are, and the few collectives of the loop. Here and in attention alone is torch.distributed used."""

import atexit
import os
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


def world() -> World:
    """Join the process group that `vlm train --processes`, torchrun or srun describe in the environment; else alone.

    The group lives as long as the process: DeepSpeed keeps handles to it, and peers of a process that fails learn of
    it only after its message is on the terminal.
    """
    env = os.environ
    rank, size, local = int(env.get("RANK", "0")), int(env.get("WORLD_SIZE", "1")), int(env.get("LOCAL_RANK", "0"))
    env.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        store = dist.HashStore() if size == 1 else None  # alone, no address is needed
        dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=size, store=store)
        atexit.register(dist.destroy_process_group)
    return World(rank, size, local, torch.device("cuda", local) if cuda else torch.device("cpu"))
