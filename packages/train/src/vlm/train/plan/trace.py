"""One unit of a model run on tensors that hold no numbers, while every storage that lives is counted."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SCRATCH = 257  # float32 copies of a depthwise weight in oneDNN's weight gradient, channels last: measured, any size


class Live(TorchDispatchMode):
    """Bytes of the storages made inside, `now` and at the `peak`. `cpu`: with the scratch of its kernels."""

    def __init__(self, cpu: bool = False) -> None:
        super().__init__()
        self.cpu = cpu
        self.now = self.peak = 0
        self.held: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.count(tensor)
        scratch = 0
        if self.cpu and func is torch.ops.aten.convolution_backward.default and args[9] > 1 and args[10][1]:
            scratch = SCRATCH * 4 * args[2].numel()
        self.peak = max(self.peak, self.now + scratch)
        return out

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's storage until it dies."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.held:
            self.held[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self.drop, storage._cdata)

    def ignore(self, tensors: list[Tensor]) -> None:
        """Weights and gradients are not activations."""
        for tensor in tensors:
            self.held[tensor.untyped_storage()._cdata] = 0

    def drop(self, key: int) -> None:
        self.now -= self.held.pop(key, 0)


class Entry(torch.autograd.Function):
    """The input of a unit: a tensor that lives only while the unit's graph or code holds it."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return leaf.new_empty(shape, dtype=dtype)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        return None, None, None


class Exit(torch.autograd.Function):
    """The gradient of a unit's output: made when the backward pass starts, and held by nobody else."""

    @staticmethod
    def forward(ctx: Any, out: Tensor) -> Tensor:
        ctx.out = out.shape, out.dtype
        return out.new_empty(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        shape, dtype = ctx.out
        return gradients[0].new_empty(shape, dtype=dtype)


@dataclass(frozen=True)
class Cost:
    """Bytes of one unit: `saved` from forward to backward (its input too if it needs it, not its output), and the
    `forward` and `backward` peaks, both with what is saved."""

    saved: int
    forward: int
    backward: int
    out: tuple[int, ...]
    grad: bool


def state(module: nn.Module) -> list[Tensor]:
    """Weights, their gradients, and buffers."""
    return [t for p in module.parameters() for t in (p, p.grad) if t is not None] + list(module.buffers())


def trace(
    unit: Callable[[Tensor], Tensor],
    uncounted: list[Tensor],
    mode: FakeTensorMode,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    grad: bool,
    *,
    held: bool = False,
    cpu: bool = False,
) -> Cost:
    """Forward and backward of a unit on an input of that shape. `held`: others hold the input, so it is not counted."""
    with mode:
        leaf = torch.zeros((), requires_grad=grad)
    live = Live(cpu)
    live.ignore(uncounted)
    with live:
        x = Entry.apply(leaf, shape, dtype)
        if held:
            live.ignore([x])
            live.now = 0
        live.peak = live.now
        out = unit(x)
        forward = live.peak
        del x
        result, trained = tuple(out.shape), out.requires_grad
        saved, backward = live.now - out.untyped_storage().nbytes(), 0
        if trained:
            end = Exit.apply(out)
            del out
            live.peak = 0
            end.backward()
            backward = live.peak
    return Cost(max(0, saved) if trained else 0, forward, backward, result, trained)
