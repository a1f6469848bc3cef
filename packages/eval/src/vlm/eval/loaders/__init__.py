"""Official files on disk -> Items in data order. One module per file format, one entry per loader key of the tables."""

from collections.abc import Callable
from pathlib import Path

from vlm.core.errors import UnknownName
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.choice import load_mmbench, load_scienceqa, load_seed
from vlm.eval.loaders.common import CountTokens, Item
from vlm.eval.loaders.grounding import load_refcoco
from vlm.eval.loaders.haystack import load_mmniah
from vlm.eval.loaders.judged import load_mathvista, load_mmvet
from vlm.eval.loaders.longvqa import load_longvqa
from vlm.eval.loaders.milebench import load_milebench
from vlm.eval.loaders.mmmu import load_mmmu
from vlm.eval.loaders.pairs import load_mme, load_mmvp
from vlm.eval.loaders.parquet import load_ocrbench, load_realworldqa
from vlm.eval.loaders.questions import load_chartqa, load_easyvqa, load_pope
from vlm.eval.loaders.video import load_mvbench, load_videomme
from vlm.eval.loaders.vqa import load_vqa

__all__ = ["LOADERS", "CountTokens", "Item", "load_items"]

LOADERS: dict[str, Callable[..., list[Item]]] = {
    "easyvqa": load_easyvqa,
    "pope": load_pope,
    "chartqa": load_chartqa,
    "milebench": load_milebench,
    "mmniah": load_mmniah,
    "longvqa": load_longvqa,
    "vqa": load_vqa,
    "scienceqa": load_scienceqa,
    "seed": load_seed,
    "mmbench": load_mmbench,
    "mmmu": load_mmmu,
    "refcoco": load_refcoco,
    "mme": load_mme,
    "mmvp": load_mmvp,
    "mmvet": load_mmvet,
    "mathvista": load_mathvista,
    "realworldqa": load_realworldqa,
    "ocrbench": load_ocrbench,
    "mvbench": load_mvbench,
    "videomme": load_videomme,
}
"""Loader key -> function(benchmark, data folder, *, count_tokens=None) -> items, all checked."""


def load_items(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """The items of `benchmark` from its data `folder`; `count_tokens` measures length budgets (MileBench).

    Raises:
        DataError: missing or malformed files, naming file and row. UnknownName: the table names no known loader.
    """
    if benchmark.loader not in LOADERS:
        raise UnknownName("loader", benchmark.loader, LOADERS)
    return LOADERS[benchmark.loader](benchmark, Path(folder), count_tokens=count_tokens)
