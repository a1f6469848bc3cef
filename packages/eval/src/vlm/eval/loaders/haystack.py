"""Needles in long documents: records of MM-NIAH (JSON lines), and of our own sets in the same format."""

from pathlib import Path
from typing import Any

from vlm.core.errors import DataError
from vlm.core.sample.records import iter_jsonl, text
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.common import CountTokens, Item, Items, get, inside, user

LETTER = "\nAnswer with the option's letter from the given choices directly."
SHORT = "\nAnswer the question using a single word or phrase."


def mmniah_prompt(item: dict[str, Any], *, letter: str = LETTER, short: str = SHORT) -> tuple[str, list[str]]:
    """Return the question with its options, and the image names of document, question and options, as V2PE asks.

    The model input is context + question without a separator. `item` is not changed. Source: the published evaluators.
    """
    question, images = item["question"], list(item["images_list"])
    choices, pictures = item["meta"]["choices"], item["meta"]["choices_image_path"]
    if choices or pictures:
        options = choices or ["<image>"] * len(pictures)
        question += "".join(f"\n{chr(65 + i)}. {option}" for i, option in enumerate(options)) + letter
        images += pictures if pictures and not choices else []
    elif not isinstance(item["answer"], list):
        question += short
    return question, images


def annotation_file(benchmark: Benchmark, root: Path, task: str) -> Path:
    """Return the file of a task's questions: `<task>.jsonl`, or what the table names for the task and its length."""
    options, variant = benchmark.options, benchmark.name.rsplit("-", 1)[1]
    annotations: str = options["annotations"]
    if "file" not in options:
        name = options["tasks"][task] if isinstance(options["tasks"], dict) else task
        return root / annotations / f"{name}.jsonl"
    name = str(options["file"]).format(task=options["tasks"][task], length=options["lengths"][variant])
    return root / annotations.format(variant=variant) / name


def _image(roots: list[Path], name: Any, where: str) -> Path:
    """Return the image in the first folder that has it, else its path in the first folder, where it is then missing."""
    if not isinstance(name, str):
        raise DataError(f"{where}: image {name!r:.60}", expected="a path")
    paths = [inside(root, name, where) for root in roots]
    return next((path for path in paths if path.is_file()), paths[0])


def load_mmniah(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load one JSON-lines file per task of the table; the group is the task. Source: the published evaluators.

    With teacher forcing, the messages end with the answer. Images are searched in each of the table's folders.

    Raises:
        DataError: Also when the `<image>` marks and the images of a row differ in number.
    """
    items, options = Items(), benchmark.options
    root = folder / "data" if benchmark.variants and (folder / "data").is_dir() else folder
    listed = options["images"] if isinstance(options["images"], list) else [options["images"]]
    for task in options["tasks"]:
        path = annotation_file(benchmark, root, task)
        budget = benchmark.generation.by_group.get(task)
        for line, record in iter_jsonl(path):
            where = f"{path}:{line}"
            meta = _check(record, where)
            question, names = mmniah_prompt(record, letter=benchmark.prompt["letter"], short=benchmark.prompt["short"])
            images = [_image([root / pictures for pictures in listed], name, where) for name in names]
            kept: dict[str, Any] = {"context_length": meta["context_length"], "placed_depth": meta["placed_depth"]}
            if budget:
                kept["max_new_tokens"] = budget
            n_choices = len(meta["choices"] or meta["choices_image_path"] or [])
            if isinstance(record["answer"], int):
                if not 0 <= record["answer"] < n_choices:
                    raise DataError(f"{where}: answer {record['answer']} of {n_choices} options", expected="an index")
                kept["n_choices"] = n_choices
            item_id = f"{task}/{get(record, 'id', (int, str), where)}"
            messages = user(record["context"] + question, images, where)
            if benchmark.teacher_forced:
                messages.append({"role": "assistant", "content": [text(str(record["answer"]))]})
            item = Item(item_id, messages, record["answer"], task, kept, asked=needles_of(meta, names))
            items.add(item, where=where, images=images, needs_image=options["needs_image"])
    return items.finish(benchmark, folder)


def needles_of(meta: dict[str, Any], names: list[str]) -> tuple[int | str, ...]:
    """Return the needles that a record names: an image by its place among `names`, a text as it stands."""
    listed = meta.get("needles")
    needles = [needle for needle in listed if isinstance(needle, str)] if isinstance(listed, list) else []
    return tuple(names.index(needle) if needle in names else needle for needle in needles)


def _check(record: Any, where: str) -> dict[str, Any]:
    for key in ("context", "question"):
        get(record, key, str, where)
    get(record, "answer", (str, int, list), where)
    images = get(record, "images_list", list, where)
    marks = record["context"].count("<image>") + record["question"].count("<image>")
    if marks != len(images):
        raise DataError(f"{where}: {marks} <image> marks but {len(images)} images", expected="as many images as marks")
    meta: dict[str, Any] = get(record, "meta", dict, where)
    get(meta, "context_length", (int, float), where)
    depth = get(meta, "placed_depth", (list, int, float), where)
    depths = depth if isinstance(depth, list) else [depth]
    if not depths or not all(isinstance(d, int | float) and 0 <= d <= 1 for d in depths):
        raise DataError(f"{where}: placed_depth {depth!r}", expected="numbers from 0 to 1")
    meta = {"choices": None, "choices_image_path": None} | meta
    if meta["choices"] and meta["choices_image_path"]:
        raise DataError(f"{where}: both text and image options", expected="one of them")
    record["meta"] = meta
    return meta


LOADERS = {"mmniah": load_mmniah}
