"""One image and one question per row: easyVQA, POPE, ChartQA."""

from pathlib import Path

from vlm.core.errors import DataError
from vlm.core.home import read_json
from vlm.core.sample.records import iter_jsonl
from vlm.core.synth.sets.easy_vqa import SHAPES
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.common import FETCH, CountTokens, Item, Items, get, inside, user


def load_easyvqa(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load `test/questions.json` ([question, answer, image id], ...), `test/images/<id>.png`, `answers.txt`.

    Groups are the kinds of question: shape, color, yes-no. Source: the easy-vqa 1.0 package.
    """
    answers_file, path, items = folder / "answers.txt", folder / "test" / "questions.json", Items()
    if not answers_file.is_file():
        raise DataError(f"no such file: {answers_file}", fix="`vlm download easyVQA` fetches the benchmark")
    answers = set(answers_file.read_text(encoding="utf-8").split())
    for row, record in enumerate(read_json(path, fix=FETCH)):
        where = f"{path}:{row}"
        if not (isinstance(record, list) and len(record) == 3 and isinstance(record[0], str)):
            raise DataError(f"{where}: {record!r:.80}", expected="[question, answer, image id]")
        question, answer, image_id = record
        if answer and answer not in answers:
            raise DataError(
                f"{where}: answer {answer!r}", expected=f"one of {answers_file}: {', '.join(sorted(answers))}"
            )
        image = folder.absolute() / "test" / "images" / f"{image_id}.png"
        group = "yes-no" if answer in ("yes", "no") else "shape" if answer in SHAPES else "color"
        meta = {"cluster": str(image_id), "question": question}
        prompt = question + benchmark.prompt["suffix"]
        items.add(Item(str(row), user(prompt, [image], where), answer, group, meta), where=where, images=[image])
    return items.finish(benchmark, folder)


def load_pope(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load `llava_pope_test.jsonl`, images in `val2014/`, labels in `coco/coco_pope_<category>.json` (JSON lines).

    As published, the k-th question of a category belongs to the k-th label of its file. Unlike published, their
    numbers, images and texts must match. Source: the published evaluators.
    """
    questions, items = folder / "llava_pope_test.jsonl", Items()
    categories = benchmark.options["categories"]
    files = {name: folder / "coco" / f"coco_pope_{name}.json" for name in categories}
    labels = {name: list(iter_jsonl(path)) for name, path in files.items()}
    used = dict.fromkeys(categories, 0)
    for line, record in iter_jsonl(questions):
        where = f"{questions}:{line}"
        category, name = get(record, "category", str, where), get(record, "image", str, where)
        asked = get(record, "text", str, where)
        if category not in labels:
            raise DataError(f"{where}: category {category!r}", expected=f"one of {', '.join(categories)}")
        if used[category] == len(labels[category]):
            raise DataError(f"{where}: {files[category]} has no label left", expected="as many labels as questions")
        label_line, label = labels[category][used[category]]
        used[category] += 1
        at = f"{files[category]}:{label_line}"
        if get(label, "image", str, at) != name or get(label, "text", str, at) not in asked:
            raise DataError(f"{where} and {at} are not the same question", expected="both files in one order")
        gold = get(label, "label", str, at)
        if gold not in ("yes", "no"):
            raise DataError(f"{at}: label {gold!r}", expected="yes or no")
        image = inside(folder / "val2014", name, where)
        prompt = asked + benchmark.prompt["join"] + benchmark.prompt["suffix"]
        item_id = str(get(record, "question_id", (int, str), where))
        meta = {"cluster": name}
        items.add(Item(item_id, user(prompt, [image], where), gold, category, meta), where=where, images=[image])
    for category, rows in labels.items():
        if used[category] != len(rows):
            raise DataError(
                f"{questions}: {used[category]} {category} questions but {len(rows)} labels in {files[category]}",
                expected="as many labels as questions",
                fix="fetch both files again",
            )
    return items.finish(benchmark, folder)


def load_chartqa(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load `test_human.jsonl` and `test_augmented.jsonl` (image, question, answer, question_id).

    Source: the published evaluators.
    """
    items = Items()
    for split in benchmark.options["splits"]:
        path = folder / f"test_{split}.jsonl"
        for line, record in iter_jsonl(path):
            where = f"{path}:{line}"
            image = inside(folder, get(record, "image", str, where), where)
            prompt = get(record, "question", str, where) + benchmark.prompt["join"] + benchmark.prompt["suffix"]
            gold = get(record, "answer", (str, list), where)
            item_id = f"{split}/{record.get('question_id', line)}"
            meta = {"cluster": image.name}
            items.add(Item(item_id, user(prompt, [image], where), gold, split, meta), where=where, images=[image])
    return items.finish(benchmark, folder)


LOADERS = {"chartqa": load_chartqa, "easyvqa": load_easyvqa, "pope": load_pope}
