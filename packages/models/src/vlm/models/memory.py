"""What a device has free, and what does not fit it: said before weights are read or a prompt is computed. Ours."""

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.core.errors import HardwareError
from vlm.core.home import split_lines
from vlm.core.progress import human_bytes
from vlm.models.attention import KVStorage
from vlm.models.specs import LanguageSpec

SMALL = 1 << 28
"""Bytes below which nothing is asked of the device: a tiny model is not slowed down."""

Place = int | str
"""A device: the number of a GPU, its name, `cpu` or `disk`."""


class CacheTooLarge(HardwareError, MemoryError):
    """Keys and values do not fit; an evaluation treats it as memory that ran out: a batch is halved."""


def free_bytes(place: Place) -> int | None:
    """Return the bytes that can still be allocated on a device; None where that cannot be known.

    On the CPU what the kernel can give without swapping, and free swap; on CUDA also what torch holds unused; on
    `disk` what the file system of temporary files, where layers are offloaded, has free.
    """
    if place == "disk":
        return shutil.disk_usage(tempfile.gettempdir()).free
    device = torch.device(place)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    lines = Path("/proc/meminfo")
    if device.type != "cpu" or not lines.is_file():
        return None
    kilobytes = {
        key: int(rest.split()[0]) for key, _, rest in (x.partition(":") for x in split_lines(lines.read_text()))
    }
    return (kilobytes["MemAvailable"] + kilobytes["SwapFree"]) * 1024


def lacking(needed: Mapping[Place, int]) -> tuple[Place, int, int] | None:
    """Return the device that lacks most, the bytes it needs and those it has; None where all fits."""
    pairs = ((place, size, free_bytes(place)) for place, size in needed.items() if size >= SMALL)
    short = [(place, size, free) for place, size, free in pairs if free is not None and size > free]
    return max(short, key=lambda found: found[1] - found[2], default=None)


def check_weights(what: Any, needed: Mapping[Place, int], others: Iterable[tuple[str, Mapping[Place, int]]]) -> None:
    """Raise HardwareError if weights do not fit where they are to lie.

    Args:
        what: the checkpoint.
        needed: bytes by device.
        others: options and what they need, from the one that changes least on; the first that fits is named.
    """
    short = lacking(needed)
    if short is None:
        return
    place, size, free = short
    fits = ((option, sum(n.values()) - n.get("disk", 0)) for option, n in others if lacking(n) is None)
    fix = next((f"{option}   ({human_bytes(size)})" for option, size in fits), None)
    disk = place == "disk"
    raise HardwareError(
        f"{what} needs {human_bytes(size)} {f'in {tempfile.gettempdir()}' if disk else f'on {place}'}, "
        f"of which {human_bytes(free)} are free",
        expected=f"weights that fit the {'disk' if disk else 'memory'}",
        fix=fix or ("TMPDIR=/a/larger/disk" if disk else "a machine with more memory, or a smaller model"),
    )


def check_cache(
    language: LanguageSpec, storage: KVStorage, like: Tensor, *, tokens: int, rows: int, devices: int = 1
) -> None:
    """Raise CacheTooLarge if keys and values do not fit.

    Args:
        language: shapes of the model.
        storage: how they are kept.
        like: a tensor in the dtype and on the device of the computation.
        tokens: of a prompt and its answer.
        rows: that are kept at once.
        devices: over which the layers lie.
    """
    head = language.width // language.heads
    values = 2 * language.depth * language.kv_heads * head * tokens * rows
    share = 1 if storage.offload else devices

    def size(dtype: str) -> int:
        return round(values * replace(storage, dtype=dtype).bytes_per_value(like.dtype, head) / share)

    place, needed = "cpu" if storage.offload else str(like.device), size(storage.dtype)
    free = free_bytes(place) if needed >= SMALL else None
    if free is None or needed <= free:
        return
    ways = [f"--kv-dtype {dtype}" for dtype in ("bfloat16", "int8") if size(dtype) <= free][:1]
    if place.startswith("cuda") and needed * share <= (free_bytes("cpu") or 0):
        ways.append("--kv-offload")
    ways += [f"fewer than {rows:,} rows at once (--batch-size, --beams)"] if rows > 1 else []
    raise CacheTooLarge(
        f"keys and values of {rows:,} x {tokens:,} tokens need {human_bytes(needed)} on {place}, "
        f"of which {human_bytes(free)} are free",
        expected=f"at most {int(free / needed * tokens * rows):,} tokens in all",
        fix="; or ".join(ways) or "a shorter prompt, or a machine with more memory",
    )
