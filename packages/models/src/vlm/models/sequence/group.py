"""The processes that hold one row together, and all collectives of a forward pass.

>>> group = SequenceGroup(mesh.get_group("sequence"))       # doctest: +SKIP
>>> group.rank, group.size                                  # doctest: +SKIP
(0, 2)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class SequenceGroup:
    """Some processes of the world, in a ring; not necessarily all of them."""

    handle: dist.ProcessGroup

    @property
    def rank(self) -> int:
        """Return this process's place in the group."""
        return self.handle.rank()

    @property
    def size(self) -> int:
        """Return the number of processes in the group."""
        return self.handle.size()

    def pass_on(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Start to send `tensor` to the next process and to receive that of the previous one, of the same shape.

        The result waits for what arrives and returns it. Until then `tensor` must not be written to.
        """
        arriving = torch.empty_like(tensor)
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, tensor, group=self.handle, group_peer=(self.rank + 1) % self.size),
                dist.P2POp(dist.irecv, arriving, group=self.handle, group_peer=(self.rank - 1) % self.size),
            ]
        )

        def arrived() -> Tensor:
            for work in works:
                work.wait()
            return arriving

        return arrived

    def exchange(self, tensor: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """Exchange slices of the first axis, differentiably: `send[p]` to process p, `receive[p]` from it."""
        received: Tensor = AllToAll.apply(tensor, send, receive, self)
        return received

    def shared(self, value: Any = None) -> Any:
        """Return the first process's `value` on every process of the group; any object that can be pickled."""
        box = [value]
        dist.broadcast_object_list(box, group=self.handle, group_src=0)
        return box[0]

    def greatest(self, tensor: Tensor) -> Tensor:
        """Return the elementwise maximum over the group, in place; the same on every process, not differentiable."""
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.handle)
        return tensor


class AllToAll(torch.autograd.Function):
    """All-to-all, with gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, send: list[int], receive: list[int], group: SequenceGroup) -> Tensor:
        """Send `send[p]` slices of the first axis to process p, receive `receive[p]` from it."""
        ctx.back, ctx.group = (receive, send), group
        result = tensor.new_empty(sum(receive), *tensor.shape[1:])
        dist.all_to_all_single(result, tensor.contiguous(), receive, send, group=group.handle)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Send the gradients back to where the values came from."""
        return AllToAll.apply(grad, *ctx.back, ctx.group), None, None, None
