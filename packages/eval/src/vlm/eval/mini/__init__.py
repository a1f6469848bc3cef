"""Miniatures: tiny benchmarks in the official format on disk, with drawn pictures and answers that a person could give.

    make_mini("POPE", home() / "dataset" / "pope", seed=0)

A miniature is a function of (benchmark, seed, n). One module per family of formats, found by its file: a new file that
defines `MINIATURES` (name of a benchmark -> function) needs no other edit.
"""

import random
from collections.abc import Callable
from pathlib import Path

from vlm.core.errors import DataError, UnknownName
from vlm.core.home import new_folder, read_json, write_json
from vlm.eval.benchmark import Benchmark, load_benchmark
from vlm.eval.loaders.common import MARKER
from vlm.eval.registry import collect

Maker = Callable[[Benchmark, Path, random.Random, int | None], dict[str, int]]
"""function(table, folder, random numbers, size or None for the usual one) -> items per group."""

MINIATURES: dict[str, Maker] = collect(__name__, "MINIATURES")
"""Name of a benchmark, without variant -> function that writes its miniature."""


def make_mini(name: str, folder: Path, seed: int = 0, n: int | None = None) -> Path:
    """Write the miniature of a benchmark, and return its folder.

    It is built beside the folder and renamed, so that a folder with a marker is complete. A folder that already holds
    the same miniature is kept; another miniature is replaced.

    Args:
        name: Name of the benchmark.
        folder: Its data folder.
        seed: Of the random generator.
        n: Items per group; None for the usual size (20 to 60 in all).

    Raises:
        UnknownName: The benchmark has no miniature.
        DataError: The folder holds something else than a miniature.
    """
    benchmark = load_benchmark(name)
    family = benchmark.name.rsplit("-", 1)[0] if benchmark.variants else benchmark.name
    if family not in MINIATURES:
        raise UnknownName("miniature", name, MINIATURES)
    folder = Path(folder)
    marker = folder / MARKER
    about = {"benchmark": benchmark.name, "seed": seed, "n": n}
    if marker.is_file():
        found = read_json(marker, fix=f"remove {folder}, then rerun the same command")
        if {key: found.get(key) for key in about} == about:
            return folder
    elif folder.exists() and any(folder.iterdir()):
        raise DataError(
            f"{folder} holds files that are no miniature",
            expected="an empty or missing folder",
            fix="choose another one",
        )
    with new_folder(folder) as temporary:
        counts = MINIATURES[family](benchmark, temporary, random.Random(f"{benchmark.name}/{seed}"), n)
        write_json(temporary / MARKER, about | {"counts": counts})
    return folder
