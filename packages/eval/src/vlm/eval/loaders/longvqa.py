"""Long-VQA: 17 question-answering sets stretched to 16-64 thousand tokens (JSON lines of stored conversations)."""

from pathlib import Path, PurePosixPath
from typing import Any

from vlm.core.errors import DataError
from vlm.core.sample.records import iter_jsonl
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.common import CountTokens, Item, Items, get, inside, user


def length_group(benchmark: Benchmark) -> tuple[int, int]:
    """Return the shortest and longest context of a variant in thousands of tokens: 16-32, then steps of eight."""
    longest = int(benchmark.name.rsplit("-", 1)[1].removesuffix("k"))
    return (16 if longest == 32 else longest - 8), longest


def annotation_file(benchmark: Benchmark, root: Path, task: str) -> Path:
    """Return the file of a task's questions in the published tree, below the folder with `val/` and `image/`."""
    low, high = length_group(benchmark)
    return root / "val" / f"long_vqa_{high}k" / f"val_long_vqa_{task}_{low}_{high}.jsonl"


def image_folder(benchmark: Benchmark, root: Path, task: str) -> Path:
    """Return the folder of a task's images in the published tree: pages of documents, or pasted pictures."""
    kind = "image" if task in benchmark.options["documents"] else "paste"
    return root / "image" / "long_vqa" / kind / task / "val"


def load_longvqa(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load one JSON-lines file per task; the group is the task, the question the stored human turn.

    `folder` is the published tree, with or without its outer `data/`. Image names are relative to the task's folder, or
    start with `dataset/`. Source: the published evaluators.

    Raises:
        DataError: Also when the `<image>` marks and the images of a row differ in number.
    """
    items = Items()
    root = folder / "data" if (folder / "data").is_dir() else folder
    for task in benchmark.options["tasks"]:
        path, pictures = annotation_file(benchmark, root, task), image_folder(benchmark, root, task)
        for line, record in iter_jsonl(path):
            where = f"{path}:{line}"
            question, gold = _turns(record, where)
            names = get(record, "image", (list, str), where)
            images = [_image(root, pictures, name, where) for name in ([names] if isinstance(names, str) else names)]
            about = record.get("metadata") or {}
            meta = {
                "context_length": about.get("context_length", -1),
                "max_new_tokens": benchmark.generation.by_group[task],
            }
            item_id = f"{task}/{get(record, 'id', (int, str), where)}"
            items.add(Item(item_id, user(question, images, where), gold, task, meta), where=where, images=images)
    return items.finish(benchmark, folder)


def _turns(record: Any, where: str) -> tuple[str, str]:
    turns = get(record, "conversations", list, where)
    if [get(turn, "from", str, where) for turn in turns] != ["human", "gpt"]:
        raise DataError(f"{where}: {len(turns)} turns", expected="a question (human) and its answer (gpt)")
    return get(turns[0], "value", str, where), get(turns[1], "value", str, where)


def _image(root: Path, pictures: Path, name: Any, where: str) -> Path:
    if not isinstance(name, str):
        raise DataError(f"{where}: image {name!r:.60}", expected="a path")
    parts = PurePosixPath(name).parts
    return inside(root, "/".join(parts[1:]), where) if parts[:1] == ("dataset",) else inside(pictures, name, where)


LOADERS = {"longvqa": load_longvqa}
