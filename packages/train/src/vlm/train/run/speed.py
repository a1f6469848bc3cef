"""Speed of a step: model FLOPs against the peak of the devices, memory, and the wait for data."""

import resource
from collections.abc import Sequence
from typing import TypedDict

import torch

from vlm.train.plan.machines import peak_here
from vlm.train.plan.run_plan import RunPlan
from vlm.train.plan.time import causal_pairs
from vlm.train.run.stream import PackedRow


class SpeedLine(TypedDict):
    """Speed of one step in metrics.jsonl: model FLOPs utilization, peak memory in GB, seconds without data."""

    mfu: float
    memory_gb: float
    data_wait_s: float


class SpeedMeter:
    """Speed of steps against the peak of `processes` devices: by the device's name, else measured once.

    The FLOPs are those of the plan. Each useful token counts once: no padding, no recomputation.

    >>> SpeedMeter(plan, processes=2).line(rows, seconds=1.0, waited=0.0)["mfu"]     # doctest: +SKIP
    """

    def __init__(self, plan: RunPlan, processes: int):
        self.work = plan.costs.work
        self.peak = peak_here(plan.recipe.precision) * processes

    def line(self, rows: Sequence[PackedRow], seconds: float, waited: float) -> SpeedLine:
        """Return the speed of one step.

        Args:
            rows: the step's rows of all ranks.
            seconds: that the step took.
            waited: seconds in which the devices had no data.
        """
        lengths = [float(n) for row in rows for n in (row.cu_seqlens[1:] - row.cu_seqlens[:-1])]
        labels = sum(int((row.labels != -100).sum()) for row in rows)
        tiles = sum(0 if row.pixels is None else len(row.pixels) for row in rows)
        flops = self.work.model(sum(lengths), causal_pairs(lengths), labels, tiles)
        return {"mfu": flops / seconds / self.peak, "memory_gb": memory_gb(), "data_wait_s": waited}


def memory_gb() -> float:
    """Return the peak memory of this process in GB: of its GPU, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
