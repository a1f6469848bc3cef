"""Machines that a plan can be made for: the accelerators of `machines.yaml`, and `cpu`, this machine, measured."""

import os
import time
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.core.config import Strict, load_yaml, parse
from vlm.core.errors import UnknownName

if TYPE_CHECKING:
    import torch

EFFICIENCY = 0.44
"""Share of the peak that all FLOPs of a step reach, recomputed ones included. One number for every plan, tuned to none:
137 of 312 TFLOP/s on A100, the 1.7-billion model of Narayanan et al. 2021 (arXiv 2104.04473, table 1)."""

EFFICIENCIES = EFFICIENCY / 2**0.5, EFFICIENCY * 2**0.5
"""The ends of what a plan reckons with, a factor of 2 apart (ours): 0.31 and 0.62. That table has 0.43 to 0.52."""


class Machine(Strict):
    """One kind of device: memory in GB (10^9), dense TFLOP/s, GB/s one way in a node and between nodes.

    `names` are parts of what CUDA calls it.
    """

    memory_gb: float
    bf16_tflops: float
    fp32_tflops: float
    link_gbs: float
    net_gbs: float
    names: tuple[str, ...] = ()
    source: str

    def peak(self, precision: str) -> float:
        """Return the peak FLOP/s in `bfloat16` or `float32`."""
        return 1e12 * (self.bf16_tflops if precision == "bfloat16" else self.fp32_tflops)


class Machines(Strict):
    """The table `machines.yaml`."""

    machines: dict[str, Machine]


def machine_table() -> dict[str, Machine]:
    """Load the accelerators by name."""
    path = Path(str(files("vlm.train.plan") / "machines.yaml"))
    return parse({"machines": load_yaml(path)}, Machines, where=path.name).machines


def get_machine(name: str) -> Machine:
    """Return a machine by name, or this one for `cpu`. Raises UnknownName with the nearest names."""
    if name == "cpu":
        return this_cpu()
    table = machine_table()
    if name not in table:
        raise UnknownName("machine", name, ["cpu", *table])
    return table[name]


def this_cpu() -> Machine:
    """Measure this machine: its memory, and its speed by a short matrix product in each precision."""
    import torch

    return Machine(
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        bf16_tflops=gemm_flops(torch.bfloat16) / 1e12,
        fp32_tflops=gemm_flops(torch.float32) / 1e12,
        link_gbs=1,
        net_gbs=1,
        source="measured; links through memory, assumed 1 GB/s",
    )


def gemm_flops(dtype: "torch.dtype", size: int = 1024, repeats: int = 3) -> float:
    """Measure the FLOP/s of this CPU: the best of a few products of square matrices."""
    import torch

    a = torch.randn(size, size).to(dtype)
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def peak_here(precision: str) -> float:
    """Return the peak FLOP/s of the device that training runs on: by its name in the table, else measured."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        for machine in machine_table().values():
            if any(part in name for part in machine.names):
                return machine.peak(precision)
        return cuda_flops(torch.bfloat16 if precision == "bfloat16" else torch.float32)
    return gemm_flops(torch.bfloat16 if precision == "bfloat16" else torch.float32)


def cuda_flops(dtype: "torch.dtype", size: int = 8192) -> float:
    """Measure the FLOP/s of an unknown CUDA device by one large matrix product."""
    import torch

    a = torch.randn(size, size, device="cuda").to(dtype)
    a @ a
    torch.cuda.synchronize()
    began = time.perf_counter()
    a @ a
    torch.cuda.synchronize()
    return 2 * size**3 / (time.perf_counter() - began)
