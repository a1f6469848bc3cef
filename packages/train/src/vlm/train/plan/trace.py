"""Run one unit of a model on tensors that hold no numbers, and count every live storage."""

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


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages made inside, `now` and at the `peak`. `cpu`: with the scratch memory of its kernels."""

    def __init__(self, cpu: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cpu = cpu
        self.now = self.peak = 0
        self.held: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count what it makes."""
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
        """Count a tensor's storage until it is freed."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.held:
            self.held[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self.drop, storage._cdata)

    def ignore(self, tensors: list[Tensor]) -> None:
        """Leave tensors out of the count: weights and gradients are not activations."""
        for tensor in tensors:
            self.held[tensor.untyped_storage()._cdata] = 0

    def drop(self, key: int) -> None:
        """Take a freed storage out of the count."""
        self.now -= self.held.pop(key, 0)


class UnitInput(torch.autograd.Function):
    """Input of a unit: a tensor that lives only while the unit's graph or code holds it."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Make the tensor."""
        return leaf.new_empty(shape, dtype=dtype)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        """Pass no gradient on."""
        return None, None, None


class UnitOutput(torch.autograd.Function):
    """Output of a unit; its gradient is made when the backward pass starts, and only the unit holds it."""

    @staticmethod
    def forward(ctx: Any, out: Tensor) -> Tensor:
        """Keep the shape and dtype, not the tensor."""
        ctx.out = out.shape, out.dtype
        return out.new_empty(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Make the gradient of the output."""
        shape, dtype = ctx.out
        return gradients[0].new_empty(shape, dtype=dtype)


@dataclass(frozen=True)
class Cost:
    """Bytes of one unit: `saved` from forward to backward, and the `forward` and `backward` peaks that include it.

    `saved` has the unit's input if the backward pass needs it, not its output. `out` is the output's shape, `grad`
    whether it has a gradient.
    """

    saved: int
    forward: int
    backward: int
    out: tuple[int, ...]
    grad: bool


def state(module: nn.Module) -> list[Tensor]:
    """Return the weights of a module, their gradients, and its buffers."""
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
    """Run a unit forward and backward, and return its cost.

    Args:
        unit: a function of one tensor.
        uncounted: its weights, gradients and buffers.
        mode: the fake mode that they were made in.
        shape: of the input.
        dtype: of the input.
        grad: whether the input has a gradient.
        held: others hold the input, so it is not counted.
        cpu: count the scratch memory of the CPU's kernels.
    """
    with mode:
        leaf = torch.zeros((), requires_grad=grad)
    live = LiveBytes(cpu)
    live.ignore(uncounted)
    with live:
        x = UnitInput.apply(leaf, shape, dtype)
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
            end = UnitOutput.apply(out)
            del out
            live.peak = 0
            end.backward()
            backward = live.peak
    return Cost(max(0, saved) if trained else 0, forward, backward, result, trained)
