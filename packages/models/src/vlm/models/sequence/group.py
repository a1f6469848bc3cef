"""The processes that hold one row together, and what they send each other: the only collectives of a forward pass."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class SequenceGroup:
    """Some processes of the world, in a ring: any group, never taken for granted to be all of them."""

    handle: dist.ProcessGroup

    @property
    def rank(self) -> int:
        """This process's place in the group."""
        return self.handle.rank()

    @property
    def size(self) -> int:
        """Processes in the group."""
        return self.handle.size()

    def pass_on(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Start to send `tensor` to the next process and to receive the previous one's, of the same shape.

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
        """Differentiable all-to-all along the first axis: `send[p]` slices to process p, `receive[p]` from it."""
        received: Tensor = AllToAll.apply(tensor, send, receive, self)
        return received

    def shared(self, value: Any = None) -> Any:
        """The first process's `value`, on every process of the group. Any object that can be pickled."""
        box = [value]
        dist.broadcast_object_list(box, group=self.handle, group_src=0)
        return box[0]

    def greatest(self, tensor: Tensor) -> Tensor:
        """Elementwise maximum over the group, in place; the same on every process. Not differentiable."""
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.handle)
        return tensor


class AllToAll(torch.autograd.Function):
    """All-to-all; the gradients go back the way the values came."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, send: list[int], receive: list[int], group: SequenceGroup) -> Tensor:
        ctx.back, ctx.group = (receive, send), group
        result = tensor.new_empty(sum(receive), *tensor.shape[1:])
        dist.all_to_all_single(result, tensor.contiguous(), receive, send, group=group.handle)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return AllToAll.apply(grad, *ctx.back, ctx.group), None, None, None
