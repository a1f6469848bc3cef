"""Paired timings: ours and a peer in turn, min and median of N, written as JSON beside the script."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any


def paired(ours: Callable[[], Any], peer: Callable[[], Any], runs: int = 5) -> dict[str, float]:
    """Seconds of both, measured in turn after one warm-up each, and the median of the pairwise ratios peer / ours."""
    ours(), peer()
    times: list[tuple[float, float]] = []
    for _ in range(runs):
        pair = []
        for call in (ours, peer):
            start = time.perf_counter()
            call()
            pair.append(time.perf_counter() - start)
        times.append((pair[0], pair[1]))
    return {
        "ours_min_s": min(a for a, _ in times),
        "ours_median_s": statistics.median(a for a, _ in times),
        "peer_min_s": min(b for _, b in times),
        "peer_median_s": statistics.median(b for _, b in times),
        "ratio": statistics.median(b / a for a, b in times),
        "runs": runs,
    }


def peak_bytes(call: Callable[[], Any]) -> int:
    """Most bytes that torch's CPU allocator held at once for what `call` makes, scratch space of kernels included."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    events.sort(key=lambda e: e.start_ns())
    return max(accumulate(e.nbytes() for e in events), default=0)


def report(name: str, rows: list[dict[str, Any]]) -> None:
    """Print the rows with machine and versions, and write `bench/NAME.json`."""
    machine = {"processor": platform.machine(), "python": platform.python_version(), "torch": version("torch")}
    print(name, machine)
    for row in rows:
        print("  " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    out = Path(__file__).with_name(f"{name}.json")
    out.write_text(json.dumps({"benchmark": name, "machine": machine, "rows": rows}, indent=1) + "\n")
