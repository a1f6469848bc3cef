"""RefCOCO, RefCOCO+ and RefCOCOg: one sentence and one box per line."""

from pathlib import Path

from vlm.core.errors import DataError
from vlm.core.sample.records import iter_jsonl
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.common import CountTokens, Item, Items, get, inside, user


def load_refcoco(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load `<set>_<split>.jsonl` (image, sent, bbox in pixels, width, height), images in `train2014/`.

    The group is the split, ids are line numbers. Source: the published evaluators.

    Raises:
        DataError: Also for a box that is not four numbers, left before right and top before bottom.
    """
    dataset, _, split = benchmark.name.rpartition("-")
    path, items = folder / f"{dataset.lower()}_{split}.jsonl", Items()
    for line, record in iter_jsonl(path):
        where = f"{path}:{line}"
        image = inside(folder, get(record, "image", str, where), where)
        box, size = get(record, "bbox", list, where), [get(record, key, int, where) for key in ("height", "width")]
        numbers = len(box) == 4 and all(isinstance(x, int | float) and not isinstance(x, bool) for x in box)
        if not numbers or not (box[0] < box[2] and box[1] < box[3]):
            raise DataError(f"{where}: bbox {box!r:.60}", expected="[left, top, right, bottom] in pixels")
        question = benchmark.prompt["question"].replace("{sentence}", get(record, "sent", str, where))
        item = Item(str(line), user(question, [image], where), box, split, {"cluster": image.name, "hw": size})
        items.add(item, where=where, images=[image])
    return items.finish(benchmark, folder)


LOADERS = {"refcoco": load_refcoco}
