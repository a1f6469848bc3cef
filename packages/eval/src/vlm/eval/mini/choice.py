"""Miniatures of ScienceQA, SEED-Bench (images), MMBench and CCBench."""

import base64
import csv
import json
import random
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.choice import ROTATION, choice_question
from vlm.eval.mini.draw import COLORS, SHAPES, Picture, bars, save, shapes, words, write_lines
from vlm.eval.mini.questions import jsonl
from vlm.eval.mini.vqa import LETTER

CHINESE = {"red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "black": "黑色", "gray": "灰色"}
COLUMNS = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
"""Columns of CCBench; MMBench has four more."""
MORE = {"source": "miniature", "l2-category": "attribute", "comment": "", "split": "dev"}


def make_scienceqa(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` questions (usually 20) about a shape, every other one with a hint."""
    n, rows = n or 20, []
    for k in range(n):
        color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
        image = f"images/test/{k}/image.png"
        save(shapes([(color, shape)]), folder / image)
        question, answer, pool = rng.choice(
            [("Which shape is shown?", shape, list(SHAPES)), ("Which color is the shape?", color, list(COLORS))]
        )
        others = rng.sample([text for text in pool if text != answer], rng.choice([1, 2]))
        choices = rng.sample([answer, *others], 1 + len(others))
        row = {"image": f"data/scienceqa/{image}", "question": question, "choices": choices}
        rows.append(row | {"answer": choices.index(answer), "hint": "Look at the figure." if k % 2 else None})
    write_lines(folder / benchmark.options["questions"], jsonl(rows))
    return {benchmark.options["split"]: n}


def make_seed(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` questions (usually 2) of each of the nine types."""
    n, types = n or 2, benchmark.options["types"]
    rows, official = [], []
    for number in range(n * len(types)):
        kind = types[number // n]
        picture, question, answer, pool = _asked(kind, rng)
        texts = rng.sample([answer, *rng.sample([text for text in pool if text != answer], 3)], 4)
        options = dict(zip("ABCD", texts, strict=True))
        gold = "ABCD"[texts.index(answer)]
        image = f"SEED-Bench-image/{number}_0"  # the official files have no extension either
        save(picture, folder / image)
        row = {"image": image, "text": choice_question(question, options, LETTER), "question_id": str(number)}
        rows.append(row | {"answer": gold})
        entry = {"question_id": str(number), "question_type_id": number // n + 1, "data_type": "image", "answer": gold}
        official.append(entry | {f"choice_{letter.lower()}": text for letter, text in options.items()})
    write_lines(folder / benchmark.options["questions"], jsonl(rows))
    content = {"question_type": {name: i + 1 for i, name in enumerate(types)}, "questions": official}
    write_lines(folder / benchmark.options["annotation"], json.dumps(content))
    return dict.fromkeys(types, n)


def _asked(kind: str, rng: random.Random) -> tuple[Picture, str, str, list[str]]:
    """Return a picture, a question of a type of SEED-Bench, its answer, and what else could be an option."""
    things = list(zip(rng.sample(list(COLORS), 3), rng.sample(SHAPES, 3), strict=True))
    numbers = [str(i) for i in range(1, 7)]
    if kind == "text understanding":
        word = rng.choice(["STOP", "EXIT", "HOTEL", "MILK"])
        return words(word), "What is written here?", word, ["STOP", "EXIT", "HOTEL", "MILK"]
    if kind == "instances counting":
        count = rng.randrange(1, 7)
        return shapes([things[0]] * count), "How many shapes are shown?", str(count), numbers
    if kind in ("visual reasoning", "scene understanding"):
        values = dict(zip(["Ada", "Bo", "Cy", "Dan"], rng.sample(range(5, 100), 4), strict=True))
        return bars(values), "Whose bar is the highest?", max(values, key=lambda name: values[name]), list(values)
    at = rng.randrange(3)
    places = ["on the left", "in the middle", "on the right", "nowhere"]
    if kind in ("instance location", "spatial relation", "instance interaction"):
        return shapes(things), f"Where is the {things[at][1]}?", places[at], places
    return shapes(things), f"What is the color of the {things[at][1]}?", things[at][0], list(COLORS)


def make_mmbench(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` questions (usually 6) with two to four options in every rotation, as TSV with base64 images."""
    split, chinese = benchmark.options["split"], benchmark.prompt["suffix"] != LETTER
    columns = COLUMNS if benchmark.name == "CCBench" else [*COLUMNS, *MORE]
    rows: list[dict[str, Any]] = []
    for number in range(n or 6):
        color, *others = rng.sample(list(CHINESE), (4, 2, 3)[number % 3])
        options = [CHINESE[name] if chinese else name for name in (color, *others)]
        encoded = BytesIO()
        shapes([(color, rng.choice(SHAPES))]).save(encoded, format="PNG")
        question = "图中的图形是什么颜色？" if chinese else "What is the color of the shape?"
        hint = ("请看图。" if chinese else "Look at the picture.") if number % 2 else ""
        for turn in range(len(options)):
            order = options[turn:] + options[:turn]
            row = {"index": number + turn * ROTATION, "question": question, "hint": hint, "category": "color"}
            row |= dict(zip("ABCD", order, strict=False)) | {"answer": "ABCD"[order.index(options[0])]}
            rows.append(row | {"image": base64.b64encode(encoded.getvalue()).decode()} | MORE)
    if benchmark.server_scored:
        columns = [name for name in columns if name != "answer"]
    rows.sort(key=lambda row: row["index"])
    text = StringIO()
    table = csv.DictWriter(text, columns, delimiter="\t", lineterminator="\n", extrasaction="ignore")
    table.writeheader()
    table.writerows(rows)
    write_lines(folder / benchmark.options["file"], text.getvalue())
    return {split: len(rows)}


MINIATURES = {
    "ScienceQA": make_scienceqa,
    "SEED-I": make_seed,
    **dict.fromkeys(
        ["CCBench", "MMBench-dev-cn", "MMBench-dev-en", "MMBench-test-cn", "MMBench-test-en"], make_mmbench
    ),
}
