"""Miniatures: tiny benchmarks in exactly the official on-disk format, with rendered pictures and answers a person could
give. Deterministic in (benchmark, seed, n). One module per family of formats.

    make_mini("POPE", home() / "dataset" / "pope", seed=0)
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from vlm.core.errors import DataError, UnknownName
from vlm.eval.benchmark import Benchmark, load_benchmark
from vlm.eval.loaders.common import MARKER
from vlm.eval.mini.choice import make_mmbench, make_scienceqa, make_seed
from vlm.eval.mini.haystack import make_digit_haystack, make_mini_v2pe, make_mmniah, make_mmniah_long
from vlm.eval.mini.longvqa import make_longvqa
from vlm.eval.mini.milebench import make_milebench
from vlm.eval.mini.mmmu import make_mmmu
from vlm.eval.mini.open import make_mathvista, make_mmvet, make_ocrbench, make_realworldqa
from vlm.eval.mini.pairs import make_mme, make_mmvp, make_refcoco
from vlm.eval.mini.questions import make_chartqa, make_easyvqa, make_pope
from vlm.eval.mini.video import make_mvbench, make_videomme
from vlm.eval.mini.vqa import make_vqa

MAKERS: dict[str, Callable[[Benchmark, Path, random.Random, int | None], dict[str, int]]] = {
    "easyVQA": make_easyvqa,
    "POPE": make_pope,
    "ChartQA": make_chartqa,
    "MileBench": make_milebench,
    "MM-NIAH": make_mmniah,
    "Long-VQA": make_longvqa,
    "DocVQA": make_vqa,
    "DocVQA-test": make_vqa,
    "InfoVQA": make_vqa,
    "InfoVQA-test": make_vqa,
    "TextVQA": make_vqa,
    "VizWiz": make_vqa,
    "VizWiz-test": make_vqa,
    "GQA": make_vqa,
    "AI2D": make_vqa,
    "ScienceQA": make_scienceqa,
    "SEED-I": make_seed,
    "MMBench-dev-en": make_mmbench,
    "MMBench-dev-cn": make_mmbench,
    "MMBench-test-en": make_mmbench,
    "MMBench-test-cn": make_mmbench,
    "CCBench": make_mmbench,
    "MMMU": make_mmmu,
    "MMMU-test": make_mmmu,
    "MM-NIAH-long": make_mmniah_long,
    "MME": make_mme,
    "MMVP": make_mmvp,
    "RefCOCO": make_refcoco,
    "RefCOCO+": make_refcoco,
    "RefCOCOg": make_refcoco,
    "MM-Vet": make_mmvet,
    "MathVista": make_mathvista,
    "RealWorldQA": make_realworldqa,
    "OCRBench": make_ocrbench,
    "MVBench": make_mvbench,
    "Video-MME": make_videomme,
    "digit-haystack": make_digit_haystack,
    "mini-v2pe": make_mini_v2pe,
}
"""Benchmark (without variant) -> function(table, folder, random numbers, size or None) -> items per group."""


def make_mini(name: str, folder: Path, seed: int = 0, n: int | None = None) -> Path:
    """Write the miniature of a benchmark to `folder` (its data folder) and return it.

    `n`: items per group; None for the usual size (20 to 60 in all). Built beside and renamed, so that a folder with a
    marker is complete. A folder that already holds this very miniature is left alone; another miniature is replaced.

    Raises:
        UnknownName: no miniature for that benchmark. DataError: `folder` holds something that is no miniature.
    """
    benchmark = load_benchmark(name)
    family = benchmark.name.rsplit("-", 1)[0] if benchmark.variants else benchmark.name
    if family not in MAKERS:
        raise UnknownName("miniature", name, MAKERS)
    folder = Path(folder)
    marker = folder / MARKER
    about = {"benchmark": benchmark.name, "seed": seed, "n": n}
    if marker.is_file():
        found = json.loads(marker.read_text(encoding="utf-8"))
        if {key: found.get(key) for key in about} == about:
            return folder
        shutil.rmtree(folder)
    elif folder.exists() and any(folder.iterdir()):
        raise DataError(
            f"{folder} holds files that are no miniature",
            expected="an empty or missing folder",
            fix="choose another one",
        )
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        rng = random.Random(f"{benchmark.name}/{seed}")
        counts = MAKERS[family](benchmark, temporary, rng, n)
        content = json.dumps(about | {"counts": counts}, indent=1, sort_keys=True)
        (temporary / MARKER).write_text(content + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
