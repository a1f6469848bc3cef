"""A pretended accelerator: its tensors keep their numbers in CPU memory and refuse to meet tensors of another device.

>>> model.to("pretended:0")                                   # or "pretended:1": there are two
>>> with waits() as count:
...     model(ids.to("pretended:0"))
>>> count
Counter({"read": 1})

Code for GPUs fails there at the first tensor that was left on the CPU. Here it fails in the same place without a GPU,
and all that runs gives the CPU's numbers. It also counts where the host would wait for a GPU. It knows nothing of
kernels, streams, memory or speed.

Importing this module registers the device with torch for the rest of the process: torch has no way back.
"""

import os
import sys
import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME, COUNT = "pretended", 2

COPIES = {"aten::copy_", "aten::_to_copy"}
"""Operations between devices."""

INDEXED = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}
"""Operations whose indices may lie on the CPU; nothing else of theirs may."""

SIZED = {
    "aten::nonzero",
    "aten::masked_select",
    "aten::repeat_interleave",
    "aten::bincount",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::equal",
}
"""Operations whose result has a size (or is a value) that the host has to wait for."""

_counters: list[Counter[str]] = []
_generators: dict[int, torch.Generator] = {}  # by the address of torch's own object
_Generator = torch.Generator


class PretendedTensor(torch.Tensor):
    """A tensor of a pretended device; `inner` holds its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device | None = None, requires_grad: bool = False):
        if device is None:  # accelerate makes a parameter by the class of the one that it replaces
            return torch.nn.Parameter(inner, requires_grad=requires_grad)
        with torch.inference_mode(inner.is_inference()):  # a view of an ordinary tensor is one too
            made = torch.Tensor._make_wrapper_subclass(
                cls,
                inner.shape,
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=device,
            )
        made.inner = inner
        return made

    def __repr__(self) -> str:
        return f"{NAME}({self.inner!r})"

    def tolist(self):
        """The numbers, by way of the CPU: torch refuses this for subclasses."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})


def on_device(device) -> bool:
    """Whether a device, or its name, is one of ours."""
    return device is not None and torch.device(device).type == NAME


def numbered(device) -> torch.device:
    """The device with a number; without one it is the first."""
    device = torch.device(device)
    return torch.device(NAME, device.index or 0)


def run(operation, args, kwargs):
    """Run an operation on the CPU memory of its tensors, or raise where a GPU would refuse them."""
    if torch.is_inference_mode_enabled():  # where torch hands over compound operations whole
        out = operation.decompose(*args, **kwargs)
        if out is not NotImplemented:
            return out
    name = operation._schema.name
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    ours = [x for x in tensors if isinstance(x, PretendedTensor)]
    wanted = kwargs.get("device")
    if name.startswith("c10d::"):
        here = torch.device("cpu")
        kwargs = dict(kwargs)
    else:
        here = numbered(wanted) if on_device(wanted) else ours[0].device if ours else torch.device("cpu")
    if name in INDEXED:
        refuse_strangers(operation, [x for x in tensors if not any(x is i for i in args[1])], ours)
        refuse_strangers(operation, [args[0], *(i for i in args[1] if isinstance(i, PretendedTensor))], ours)
    elif name not in COPIES and wanted is None:
        refuse_strangers(operation, tensors, ours)
    for x in tree_leaves((args, kwargs)):
        if ours and isinstance(x, _Generator) and x._cdata not in _generators:
            raise RuntimeError(f"{operation}: a generator of the CPU draws on {here}")
    if _counters:
        note(operation, name, args, kwargs, ours)
    if on_device(wanted):
        kwargs = {**kwargs, "device": torch.device("cpu")} | ({"pin_memory": False} if "pin_memory" in kwargs else {})
    wrapper_of = {id(x.inner): x for x in ours}

    def bare(x):
        return x.inner if isinstance(x, PretendedTensor) else x

    out = operation(*tree_map(bare, args), **tree_map(bare, kwargs))
    stays = ours if wanted is None else on_device(wanted)

    def dressed(x):
        if not isinstance(x, torch.Tensor) or isinstance(x, PretendedTensor):
            return x
        if id(x) in wrapper_of:  # in place, or `out`: the same tensor comes back
            return wrapper_of[id(x)]
        return PretendedTensor(x, target) if stays else x

    target = torch.device(NAME, here.index or 0) if stays and here.type == NAME else here
    if name.startswith("c10d::"):
        target = ours[0].device
    return tree_map(dressed, out)


def refuse_strangers(operation, tensors, ours) -> None:
    """Raise as CUDA does where tensors of several devices meet; a CPU scalar may."""
    if not ours:
        return
    first = ours[0].device
    for x in tensors:
        if x.device != first and not (x.dim() == 0 and x.device.type == "cpu"):
            raise RuntimeError(
                f"{operation}: a tensor {tuple(x.shape)} on {x.device} meets one {tuple(ours[0].shape)} on {first}"
            )


# waits ----------------------------------------------------------------------------------------------------------------


@contextmanager
def waits():
    """Count, in all threads, where the host waits for a device, and copies for which it does not.

    - `read`: a number comes to the host: `item`, `int`, `bool`, `tolist`, `cpu`
    - `size`: a result's size depends on numbers: `nonzero`, a boolean index, `repeat_interleave` without `output_size`
    - `upload`: a copy to the device that the host waits for; `behind`: one that it does not wait for
    - `across`: a copy from one pretended device to another
    """
    count: Counter[str] = Counter()
    _counters.append(count)
    try:
        yield count
    finally:
        _counters.remove(count)


def note(operation, name, args, kwargs, ours) -> None:
    """Count an operation if the host would wait for it."""
    kind = None
    if name == "aten::_local_scalar_dense":
        kind = "read"
    elif name in SIZED and not (name == "aten::repeat_interleave" and kwargs.get("output_size") is not None):
        kind = "size"
    elif name in INDEXED:
        if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            kind = "size"
        elif any(isinstance(i, torch.Tensor) and not isinstance(i, PretendedTensor) for i in args[1]):
            kind = "upload"
    elif name == "aten::_to_copy":
        target = kwargs.get("device") or args[0].device
        kind = copy_kind(args[0].device, target, kwargs.get("non_blocking"))
    elif name == "aten::copy_":
        kind = copy_kind(args[1].device, args[0].device, args[2] if len(args) > 2 else kwargs.get("non_blocking"))
    if kind is not None:
        for count in _counters:
            count[kind] += 1
        if os.environ.get("SHOW_WAITS"):
            show(kind, operation)


def copy_kind(source, target, behind) -> str | None:
    """Return what a copy between two devices counts as; None within one."""
    source, target = torch.device(source), torch.device(target)
    if source.type == target.type:
        return "across" if source.type == NAME and numbered(source) != numbered(target) else None
    if source.type == NAME:
        return "read"
    return "behind" if behind else "upload"


def show(kind, operation) -> None:
    """Print where a wait comes from: `SHOW_WAITS=1 pytest -s ...`."""
    frames = [f for f in traceback.extract_stack() if "/support/" not in f.filename and "/torch/" not in f.filename]
    places = [f"{Path(f.filename).name}:{f.lineno}" for f in frames[-4:]]
    print(f"{kind:7} {operation} {' > '.join(places)}", file=sys.stderr)


# torch's side ---------------------------------------------------------------------------------------------------------


class Hooks(torch._C._acc.PrivateUse1Hooks):
    """What torch asks of a device: it is there."""

    def is_available(self) -> bool:
        return True

    def has_primary_context(self, number) -> bool:
        return True

    def is_built(self) -> bool:
        return True


class Module:
    """`torch.pretended`: random numbers come from the CPU's generator, and nothing has to be waited for."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return COUNT

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """The CPU's generator, which draws for us, has the seed already."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device=None):
        return torch.get_rng_state()

    def set_rng_state(self, state, device=None) -> None:
        torch.set_rng_state(state)

    @contextmanager
    def device(self, number):
        yield


def generator(device="cpu"):
    """`torch.Generator` for a pretended device: one of the CPU that only our tensors take."""
    if not on_device(device):
        return _Generator(device)
    made = _Generator()
    _generators[made._cdata] = made
    return made


def _empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    memory_format = memory_format or torch.contiguous_format
    return PretendedTensor(torch.empty(size, dtype=dtype, memory_format=memory_format), numbered(device))


def _empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
    return PretendedTensor(torch.empty_strided(size, stride, dtype=dtype), numbered(device))


def _arange(start, end, step=1, *, dtype=None, layout=None, device=None, pin_memory=None):
    return PretendedTensor(torch.arange(start, end, step, dtype=dtype), numbered(device))


def _copy_from(source, target, non_blocking=False):
    if _counters:
        note("_copy_from", "aten::copy_", (target, source, non_blocking), {}, [])
    bare = [x.inner if isinstance(x, PretendedTensor) else x for x in (target, source)]
    bare[0].copy_(bare[1])
    return target


_setup_privateuseone_for_python_backend(NAME, Module(), Hooks())
_library = torch.library.Library("aten", "IMPL", "PrivateUse1")
_library.impl("empty.memory_format", _empty)
_library.impl("empty_strided", _empty_strided)
_library.impl("arange.start_step", _arange)
_library.impl("_copy_from", _copy_from)
