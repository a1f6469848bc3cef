"""Miniatures of easyVQA, POPE and ChartQA."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from vlm.eval.benchmark import Benchmark
from vlm.eval.mini.draw import COLORS, SHAPES, bars, save, shapes, write_lines

SHORT = "Answer the question using a single word or phrase."


def jsonl(rows: list[dict[str, Any]]) -> str:
    """Format rows as JSON, one object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def make_easyvqa(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` images (usually 12) with four questions each: shape, color, and two for yes or no."""
    questions: list[list[Any]] = []
    n = n or 12
    for number in range(n):
        color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
        save(shapes([(color, shape)]), folder / "test" / "images" / f"{number}.png")
        other = rng.choice([name for name in COLORS if name != color])
        questions += [
            ["what shape is in the image?", shape, number],
            [f"what is the color of the {shape}?", color, number],
            [f"is there a {shape}?", "yes", number],
            [f"is there a {other} shape in the image?", "no", number],
        ]
    write_lines(folder / "test" / "questions.json", json.dumps(questions))
    write_lines(folder / "answers.txt", "\n".join([*COLORS, *SHAPES, "yes", "no"]) + "\n")
    return {"shape": n, "color": n, "yes-no": 2 * n}


def make_pope(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` questions per category (usually 12): one yes and one no for each picture of two shapes."""
    n = n or 12
    things = [(color, shape) for color in COLORS for shape in SHAPES]
    questions, counts = [], {}
    for offset, category in enumerate(benchmark.options["categories"]):
        labels = []
        for k in range(n):
            name = f"COCO_val2014_{100 * offset + k // 2:012d}.png"
            if k % 2 == 0:
                present, second, absent = rng.sample(things, 3)
                save(shapes([present, second]), folder / "val2014" / name)
            color, shape = absent if k % 2 else present
            asked = f"Is there a {color} {shape} in the image?"
            labels.append({"question_id": k + 1, "image": name, "text": asked, "label": "no" if k % 2 else "yes"})
            row = {"question_id": 10_000_000 * offset + k + 1, "image": name, "text": f"{asked}\n{SHORT}"}
            questions.append(row | {"category": category})
        write_lines(folder / "coco" / f"coco_pope_{category}.json", jsonl(labels))
        counts[category] = n
    write_lines(folder / "llava_pope_test.jsonl", jsonl(questions))
    return counts


def make_chartqa(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` questions per split (usually 12) about bar charts with printed values."""
    n = n or 12
    counts: Counter[str] = Counter()
    for split in benchmark.options["splits"]:
        rows = []
        for k in range(n):
            names = rng.sample(["Ada", "Bo", "Cy", "Dan", "Eve", "Fay"], 4)
            values = dict(zip(names, rng.sample(range(5, 100), 4), strict=True))
            image = f"ChartQA Dataset/test/png/{split}_{k}.png"
            save(bars(values), folder / image)
            top = max(values, key=lambda name: values[name])
            asked, answer = [
                (f"What is the value of {names[0]}?", str(values[names[0]])),
                ("Which bar is the highest?", top),
                (f"What is the sum of {names[1]} and {names[2]}?", str(values[names[1]] + values[names[2]])),
            ][k % 3]
            rows.append({"image": f"data/chartqa/{image}", "question": asked, "question_id": k, "answer": answer})
            counts[split] += 1
        write_lines(folder / f"test_{split}.jsonl", jsonl(rows))
    return dict(counts)


MINIATURES = {"ChartQA": make_chartqa, "POPE": make_pope, "easyVQA": make_easyvqa}
