"""Paired timings: ours and a peer in turn, min and median of N, written as JSON beside the script."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any


def paired(
    ours: Callable[[], Any], peer: Callable[[], Any], runs: int = 5, *, warm_up: bool = True
) -> dict[str, float]:
    """Seconds of both, measured in turn after one warm-up each: on the wall, and of CPU with that of child processes.

    `ratio` is the median of the pairwise ratios peer / ours in wall time. On a machine with other work only the CPU
    times mean something; `cpu_ratio` is ours / peer of their minima.
    """
    if warm_up:
        ours(), peer()
    walls: list[tuple[float, float]] = []
    cpus: list[tuple[float, float]] = []
    for _ in range(runs):
        timed = [_timed(call) for call in (ours, peer)]
        walls.append((timed[0][0], timed[1][0]))
        cpus.append((timed[0][1], timed[1][1]))
    least = [min(column) for column in zip(*cpus, strict=True)]
    return {
        "ours_min_s": min(a for a, _ in walls),
        "ours_median_s": statistics.median(a for a, _ in walls),
        "peer_min_s": min(b for _, b in walls),
        "peer_median_s": statistics.median(b for _, b in walls),
        "ratio": statistics.median(b / a for a, b in walls),
        "ours_cpu_min_s": least[0],
        "peer_cpu_min_s": least[1],
        "cpu_ratio": least[0] / max(least[1], 1e-9),
        "runs": runs,
    }


def _timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the wall and on the processors."""
    wall, cpu = time.perf_counter(), _cpu()
    call()
    return time.perf_counter() - wall, _cpu() - cpu


def _cpu() -> float:
    """Seconds of CPU that this process and the children it has waited for have used."""
    used = os.times()
    return time.process_time() + used.children_user + used.children_system


def peak_bytes(call: Callable[[], Any]) -> int:
    """Most bytes that torch's CPU allocator held at once for what `call` makes, scratch space of kernels included."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    events.sort(key=lambda e: e.start_ns())
    return max(accumulate(e.nbytes() for e in events), default=0)


def profiled(call: Callable[[], Any], most: int = 12) -> str:
    """Return a table of the operators that a call spends its CPU time in, the dearest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        call()
    return str(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=most, max_name_column_width=48))


def report(name: str, rows: list[dict[str, Any]], peers: dict[str, str] | None = None) -> None:
    """Print the rows with machine and versions (`peers`: those of the libraries), and write `bench/NAME.json`."""
    machine = {"processor": platform.machine(), "python": platform.python_version(), "torch": version("torch")}
    machine |= peers or {}
    print(name, machine)
    for row in rows:
        print("  " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    out = Path(__file__).with_name(f"{name}.json")
    out.write_text(json.dumps({"benchmark": name, "machine": machine, "rows": rows}, indent=1) + "\n")
