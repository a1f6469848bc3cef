"""This process among its peers, and the few collectives of the loop.

Processes form a mesh of data x sequence: `sequence_parallel.size` neighbors hold each row together, and the rows of a
step are dealt to these groups. Only this module and `vlm.models.sequence.group` use torch.distributed.

>>> me = meshed(world(), sequence=4)                # doctest: +SKIP
>>> me.rank, me.data_rank, me.total(1.0)            # doctest: +SKIP
"""

import atexit
import os
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from vlm.core.errors import ConfigError
from vlm.models.sequence.group import SequenceGroup


@dataclass(frozen=True)
class World:
    """This process among its peers. `sequence`: the group that holds rows together, None for whole rows on each."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    sequence: SequenceGroup | None = None

    @property
    def sequence_size(self) -> int:
        """Processes that hold a row together."""
        return self.sequence.size if self.sequence else 1

    @property
    def data_rank(self) -> int:
        """Number of this process's sequence group, which decides its rows."""
        return self.rank // self.sequence_size

    @property
    def data_size(self) -> int:
        """Number of sequence groups."""
        return self.size // self.sequence_size

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def total(self, value: float | torch.Tensor) -> float:
        """Return the sum of `value`, a number or a float64 scalar, over all processes."""
        if self.size == 1:
            return float(value)
        tensor = torch.as_tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.item()

    def agree(self, value: bool) -> bool:
        """Return whether any process gives True; the same answer on all."""
        return self.total(float(value)) > 0

    def union(self, values: set[str]) -> set[str]:
        """Return what is in the set of any process."""
        if self.size == 1:
            return values
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, values)
        return set().union(*gathered)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


def world() -> World:
    """Join the process group that `vlm train --processes`, torchrun or srun describe in the environment.

    Without a description the process is alone. The group lives as long as the process: DeepSpeed keeps handles to it,
    and the peers of a process that fails notice it only after its message is on the terminal.
    """
    env = os.environ
    rank, size, local = int(env.get("RANK", "0")), int(env.get("WORLD_SIZE", "1")), int(env.get("LOCAL_RANK", "0"))
    env.setdefault("LOCAL_RANK", "0")  # DeepSpeed requires it
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        # alone, no address is needed; torch's stubs leave the class out
        store = dist.HashStore() if size == 1 else None  # type: ignore[attr-defined]
        dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=size, store=store)
        atexit.register(dist.destroy_process_group)
    return World(rank, size, local, torch.device("cuda", local) if cuda else torch.device("cpu"))


def check_mesh(size: int, sequence: int) -> None:
    """Raise ConfigError unless groups of `sequence` processes make up a world of `size`."""
    if size % sequence:
        raise ConfigError(
            f"sequence_parallel.size is {sequence} with {size} processes",
            expected=f"a size that divides {size}",
            fix=f"start a multiple of {sequence} processes, or set another size",
        )


def meshed(me: World, sequence: int) -> World:
    """Return `me` in a mesh whose groups of `sequence` neighbors hold rows together; all processes call this.

    Raises:
        ConfigError: the groups do not make up the world.
    """
    check_mesh(me.size, sequence)
    if sequence == 1:
        return me
    shape = (me.size // sequence, sequence)
    mesh = init_device_mesh(me.device.type, shape, mesh_dim_names=("data", "sequence"))
    return replace(me, sequence=SequenceGroup(mesh.get_group("sequence")))
