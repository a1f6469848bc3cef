"""Official files on disk -> items in data order. One module per file format, found by its file.

    items = load_items(load_benchmark("POPE"), home() / "dataset" / "pope")
    items[0].messages, items[0].gold                # one user message with image paths; "yes"

A new file that defines `LOADERS` (key of a table's `loader` -> function) needs no other edit.
"""

from pathlib import Path

from vlm.core.errors import UnknownName
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.common import CountTokens, Item, Loader
from vlm.eval.registry import collect

__all__ = ["LOADERS", "CountTokens", "Item", "Loader", "load_items"]

LOADERS: dict[str, Loader] = collect(__name__, "LOADERS")
"""Key of a table's `loader` -> function(benchmark, data folder, count_tokens=None) -> items, all checked."""


def load_items(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load the items of a benchmark.

    Args:
        benchmark: The table, as the model family is asked (`Benchmark.for_family`).
        folder: Its data folder.
        count_tokens: Measures length budgets (MileBench); by default four characters are a token.

    Raises:
        DataError: Files are missing or malformed; names the file and the row.
        UnknownName: The table names no known loader.
    """
    if benchmark.loader not in LOADERS:
        raise UnknownName("loader", benchmark.loader, LOADERS)
    return LOADERS[benchmark.loader](benchmark, Path(folder), count_tokens=count_tokens)
