"""Keys and values as they are kept between forward passes: their dtype, their place, and buffers that grow.

>>> storage = KVStorage("int8")
>>> storage.bytes_per_value(torch.bfloat16, head_size=128)
1.03125
>>> keys = StoredStates(storage)
>>> keys.write(torch.randn(1, 8, 5, 128), start=0).shape
torch.Size([1, 8, 5, 128])

What was written is read back in the dtype and on the device that it came in, with the rounding of the kept dtype: so a
prompt read in chunks and one read at once see the same keys. `int8` and `fp8` (float8_e4m3fn) have a float32 scale for
each token and head. Source: ours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.core.errors import UnknownName

KV_DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
}
"""By name; None is the dtype that the model computes in."""

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""Dtypes that need scales -> the number that the largest value of a token and head becomes."""

ROOM = 128
"""Tokens of free room in a new buffer, at least."""

BLOCK = 1024
"""Tokens of a block on the CPU; copied whole, so that each copy is one piece of pinned memory."""

SPAN = 8192
"""Tokens whose scales are applied at once: it bounds the float32 copy."""


@dataclass(frozen=True)
class KVStorage:
    """How keys and values are kept: `dtype` of `KV_DTYPES`; with `offload` on the CPU, one layer at a time elsewhere.

    Raises:
        UnknownName: no such dtype.
    """

    dtype: str = "auto"
    offload: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in KV_DTYPES:
            raise UnknownName("KV dtype", self.dtype, KV_DTYPES)

    def kept(self, computed: torch.dtype) -> torch.dtype:
        """Return the dtype that values of a model computing in `computed` are kept in."""
        return KV_DTYPES[self.dtype] or computed

    def bytes_per_value(self, computed: torch.dtype, head_size: int) -> float:
        """Return the bytes of a key's or value's number, its part of the scale included."""
        kept = self.kept(computed)
        return kept.itemsize + (torch.float32.itemsize / head_size if kept in LARGEST else 0)


class StoredStates:
    """Keys, or values, of one layer [B, H_kv, tokens, D], written at the end and read from the start.

    Args:
        storage: how they are kept.
        room: tokens to make room for at the first write; a buffer that is full grows by an eighth.
    """

    def __init__(self, storage: KVStorage, room: int = 0):
        self.storage, self.room = storage, room
        self.blocks: list[tuple[Tensor, ...]] = []
        """Each [B, H_kv, size, D], and scales [B, H_kv, size, 1] where there are any; more than one only on the CPU."""

    @property
    def nbytes(self) -> int:
        """Return the bytes of all buffers, free room included."""
        return sum(part.numel() * part.element_size() for block in self.blocks for part in block)

    @property
    def size(self) -> int:
        """Return the tokens of a block."""
        return self.blocks[0][0].shape[2] if self.blocks else 0

    def write(self, new: Tensor, start: int) -> Tensor:
        """Write the states [B, H_kv, n, D] of tokens from `start` on; return those of all tokens to their end."""
        end = start + new.shape[2]
        parts = packed(new, self.storage.kept(new.dtype))
        self._make_room(parts, start, end)
        size = self.size
        for number in range(start // size, -(-end // size)):
            first, last = max(start, number * size), min(end, (number + 1) * size)
            for buffer, part in zip(self.blocks[number], parts, strict=True):
                buffer[:, :, first - number * size : last - number * size] = part[:, :, first - start : last - start]
        return self.read(end, new)

    def read(self, end: int, like: Tensor) -> Tensor:
        """Return the states of the first `end` tokens in the dtype and on the device of `like`."""
        if not self.storage.offload:
            return unpacked([part[:, :, :end] for part in self.blocks[0]], like.dtype)
        blocks, size, parts = self.blocks[: -(-end // self.size)], self.size, []
        for pieces in zip(*blocks, strict=True):
            rows, heads, _, width = pieces[0].shape
            whole = torch.empty(rows, heads, len(blocks) * size, width, dtype=pieces[0].dtype, device=like.device)
            for number, piece in enumerate(pieces):
                whole[:, :, number * size : (number + 1) * size].copy_(piece, non_blocking=True)
            parts.append(whole[:, :, :end])
        return unpacked(parts, like.dtype)

    def beginning(self, length: int, rows: int = 1) -> "StoredStates":
        """Return the first `length` tokens for `rows` equal rows. Neither changes when the other is written to."""
        other = StoredStates(self.storage)
        if length and not self.storage.offload:  # without free room: the first write makes a buffer of its own
            other.blocks = [tuple(p[:, :, :length].expand(rows, -1, -1, -1) for p in self.blocks[0])]
        elif length:
            full = length // self.size if rows == 1 else 0  # blocks that nobody writes again are shared
            other.blocks = self.blocks[: -(-length // self.size)]
            for number in range(full, len(other.blocks)):
                other.blocks[number] = self._changed(number, lambda p: p.expand(rows, -1, -1, -1).clone())
        return other

    def change_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace the rows: `change` makes new buffers [B', H_kv, size, D] of buffers [B, H_kv, size, D]."""
        self.blocks = [self._changed(number, change) for number in range(len(self.blocks))]

    def _changed(self, number: int, change: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        pairs = [(part, change(part)) for part in self.blocks[number]]
        return tuple(new.pin_memory() if self.storage.offload and old.is_pinned() else new for old, new in pairs)

    def _make_room(self, parts: tuple[Tensor, ...], start: int, end: int) -> None:
        if self.storage.offload:
            while len(self.blocks) * BLOCK < end:
                self.blocks.append(tuple(_on_cpu(part, BLOCK) for part in parts))
        elif self.size < end:
            room = max(end, self.room) if not self.blocks and self.room else end + max(ROOM, end // 8)
            grown = tuple(p.new_empty(p.shape[0], p.shape[1], room, p.shape[3]) for p in parts)
            for old, new in zip(self.blocks[0] if self.blocks else (), grown, strict=False):
                new[:, :, :start] = old[:, :, :start]
            self.blocks = [grown]


def packed(states: Tensor, kept: torch.dtype) -> tuple[Tensor, ...]:
    """Return states [..., D] in the kept dtype, and where it needs them scales [..., 1], float32.

    NaN and infinity of a token make its scale so, and all that is read of it NaN.
    """
    if kept not in LARGEST:
        return (states.to(kept),)
    scale = states.abs().amax(-1, keepdim=True).float() / LARGEST[kept]
    numbers = states.float() / scale.clamp(min=torch.finfo(torch.float32).tiny)
    return (numbers.round() if kept == torch.int8 else numbers).to(kept), scale


def unpacked(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Return what `packed` kept in another dtype."""
    numbers = parts[0]
    if len(parts) == 1:
        return numbers.to(dtype)
    out = torch.empty_like(numbers, dtype=dtype, memory_format=torch.contiguous_format)
    for start in range(0, numbers.shape[2], SPAN):
        at = slice(start, start + SPAN)
        out[:, :, at] = numbers[:, :, at].float().mul_(parts[1][:, :, at])
    return out


def _on_cpu(like: Tensor, size: int) -> Tensor:
    """Return a new buffer of `size` tokens on the CPU; pinned where a GPU will read it."""
    shape = (*like.shape[:2], size, like.shape[3])
    return torch.empty(shape, dtype=like.dtype, pin_memory=like.device.type == "cuda")
