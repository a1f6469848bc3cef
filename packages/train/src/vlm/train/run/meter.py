"""Speed of a step: model FLOPs against the peak of the devices, memory, and the wait for data."""

import resource
from collections.abc import Sequence
from typing import Any

import torch

from vlm.models.specs import ModelSpec
from vlm.train.plan.fit import meta_model
from vlm.train.plan.machines import peak_here
from vlm.train.plan.time import causal_pairs, make_work
from vlm.train.recipe.recipe import Recipe
from vlm.train.run.stream import Row


class Meter:
    """`line(rows, seconds, waited)` -> mfu, memory_gb, data_wait_s. The peak is the named device's, else measured once.

    MFU counts each useful token once: no padding, no recomputation.
    """

    def __init__(self, spec: ModelSpec, recipe: Recipe, processes: int):
        self.work = make_work(meta_model(spec, recipe), recipe)
        self.peak = peak_here(recipe.precision) * processes

    def line(self, rows: Sequence[Row], seconds: float, waited: float) -> dict[str, Any]:
        """Of one step over all ranks' rows; `waited`: seconds in which the devices had no data."""
        lengths = [float(n) for row in rows for n in (row.cu_seqlens[1:] - row.cu_seqlens[:-1])]
        labels = sum(int((row.labels != -100).sum()) for row in rows)
        tiles = sum(0 if row.pixels is None else len(row.pixels) for row in rows)
        flops = self.work.model(sum(lengths), causal_pairs(lengths), labels, tiles)
        return {"mfu": flops / seconds / self.peak, "memory_gb": memory_gb(), "data_wait_s": waited}


def memory_gb() -> float:
    """Peak memory of this process: of its GPU, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
