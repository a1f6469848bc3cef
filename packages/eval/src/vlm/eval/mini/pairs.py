"""Miniatures of MME, MMVP and RefCOCO: colored shapes that are there or not, and where."""

import random
from pathlib import Path

from vlm.eval.benchmark import Benchmark
from vlm.eval.mini.draw import COLORS, SHAPES, bars, save, shapes, words, write_lines
from vlm.eval.mini.questions import jsonl

END = "Please answer yes or no."
THINGS = [(color, shape) for color in COLORS for shape in SHAPES]
TEXTS = ("BREAD", "RIVER", "TRAIN", "CLOCK")
TEXT_TASKS = ("OCR", "posters", "text_translation", "code_reasoning")
NUMBER_TASKS = ("count", "numerical_calculation", "commonsense_reasoning")


def make_mme(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` images per task (usually 2) with two questions each, one for yes and one for no."""
    n, tasks = n or 2, list(benchmark.counts.groups) if benchmark.counts else []
    for task in tasks:
        lines = []
        for k in range(n):
            if task in TEXT_TASKS:
                right, wrong = rng.sample(TEXTS, 2)
                picture, question = words(right), "Is the word in the image {!r}?"
            elif task in NUMBER_TASKS:
                right, wrong = (str(number) for number in rng.sample(range(2, 9), 2))
                picture, question = bars({"Ada": int(right)}, 120, 160), "Is the value of Ada {}?"
            else:
                first, second = rng.sample(THINGS, 2)
                (right, wrong), picture = (" ".join(first), " ".join(second)), shapes([first])
                question = "Is there a {} in the image?"
            name = f"{k:06d}.png"
            save(picture, folder / "MME_Benchmark_release_version" / task / name)
            for value, answer in ((right, "Yes"), (wrong, "No")):
                lines.append(f"{name}\t{question.format(value)} {END}\t{answer}\n")
        write_lines(folder / "Your_Results" / f"{task}.txt", "".join(lines))
    return dict.fromkeys(tasks, 2 * n)


def make_mmvp(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` pairs (usually 10): one question about two pictures that differ in its answer only."""
    n = n or 10
    rows = ["lndex,Question,Options,Correct Answer\n"]
    for k in range(n):
        (color, shape), other = rng.choice(THINGS), rng.choice(list(COLORS))
        left = rng.random() < 0.5
        for i in range(2):
            number, at_left = 2 * k + i + 1, left == (i == 0)
            pair = [(color, shape), (other, "rectangle" if shape == "circle" else "circle")]
            save(shapes(pair if at_left else pair[::-1]), folder / "MMVP Images" / f"{number}.jpg")
            question = f'"Is the {shape} on the left, or on the right?"'
            rows.append(f"{number},{question},(a) Left (b) Right,({'a' if at_left else 'b'})\n")
    write_lines(folder / "Questions.csv", "".join(rows))
    return {"all": 2 * n}


def make_refcoco(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` sentences (usually 20), two on each picture of three shapes; the box is the square of the shape."""
    n = n or 20
    dataset, _, split = benchmark.name.rpartition("-")
    rows, size, at = [], 80, 0
    for k in range(n):
        if k % 2 == 0:
            things = rng.sample(THINGS, 3)
            name = f"train2014/COCO_train2014_{k // 2:012d}.jpg"
            save(shapes(things, size), folder / name)
        at = rng.randrange(3) if k % 2 == 0 else (at + 1) % 3
        box = [at * size + size // 5, size // 5, (at + 1) * size - size // 5, size - size // 5]
        row = {"image": f"data/coco/{name}", "sent": " ".join(things[at]), "bbox": box}
        rows.append(row | {"height": size, "width": 3 * size})
    write_lines(folder / f"{dataset.lower()}_{split}.jsonl", jsonl(rows))
    return {split: n}


MINIATURES = {"MME": make_mme, "MMVP": make_mmvp, **dict.fromkeys(["RefCOCO", "RefCOCO+", "RefCOCOg"], make_refcoco)}
