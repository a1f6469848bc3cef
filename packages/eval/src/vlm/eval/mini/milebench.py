"""Miniature of MileBench: all 29 sets, with questions about small pictures that the scorer of the set can check."""

import json
import random
from pathlib import Path
from typing import Any

from vlm.eval.benchmark import Benchmark
from vlm.eval.mini.draw import COLORS, SHAPES, Picture, save, shapes, words, write_lines

INSTRUCTIONS = ["Look at the pictures and answer the question.", "Answer the question about the pictures."]


def make_milebench(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` samples (usually 2) of each set."""
    n = n or 2
    makers = {"milebench_rouge_l": _change, "milebench_needle": _needle, "milebench_contains": _name}
    names = [name for sets in benchmark.options["tasks"].values() for name in sets]
    for name in names:
        scorer = benchmark.scorer_of(name)
        make = _retrieval if name == "GPR1200" else makers.get(scorer, _choice)
        data = []
        for sample in range(n):
            pictures, task, answer = make(rng)
            paths = [f"{sample}_{i}.png" for i in range(len(pictures))]
            for path, picture in zip(paths, pictures, strict=True):
                save(picture, folder / name / "images" / path)
            level = "Few" if len(paths) < 6 else "Medium" if len(paths) < 32 else "Many"
            record = {
                "sample_id": sample,
                "task_instruction_id": sample % len(INSTRUCTIONS),
                "task_instance": {**task, "images_path": paths},
                "response": answer,
                "image_quantity_level": level,
            }
            data.append(record)
        kind = "multi-choice" if scorer == "milebench_multichoice" else "open-ended"
        about = {"task_instruction": INSTRUCTIONS, "question_type": kind}
        write_lines(folder / name / f"{name}.json", json.dumps({"meta_data": about, "data": data}, indent=1))
    return dict.fromkeys(names, n)


Made = tuple[list[Picture], dict[str, Any], str]
"""Pictures, the task instance, the answer."""


def _marks(n: int) -> str:
    return " ".join(f"{{image#{i}}}" for i in range(1, n + 1))


def _choice(rng: random.Random) -> Made:
    colors = rng.sample(list(COLORS), 4)
    shape = rng.choice(SHAPES)
    order = rng.sample(colors, rng.choice([2, 3, 4]))
    context = f"{_marks(len(order))} Question: what is the color of the {shape} in the last picture?"
    return [shapes([(color, shape)]) for color in order], {"context": context, "choice_list": colors}, order[-1]


def _retrieval(rng: random.Random) -> Made:
    things = rng.sample([(color, shape) for color in COLORS for shape in SHAPES], 6)
    wanted = rng.randrange(5)
    options = "\n".join(f"image{i + 2}: {{image#{i + 2}}}" for i in range(5))
    context = f"Query: {{image#1}}\n{options}\nQuestion: which picture shows the same thing as the query?"
    pictures = [shapes([things[wanted]])] + [shapes([thing]) for thing in things[:5]]
    choices = [f"image{i + 2}" for i in range(5)]
    return pictures, {"context": context, "choice_list": choices}, choices[wanted]


def _change(rng: random.Random) -> Made:
    before, after = rng.sample(list(COLORS), 2)
    shape = rng.choice(SHAPES)
    context = "{image#1} {image#2} Question: what changed from the first picture to the second?"
    answer = f"the {shape} changed from {before} to {after}"
    return [shapes([(before, shape)]), shapes([(after, shape)])], {"context": context}, answer


def _needle(rng: random.Random) -> Made:
    number = str(rng.randrange(1_000_000, 10_000_000))
    pictures = [shapes([(rng.choice(list(COLORS)), rng.choice(SHAPES))]) for _ in range(3)]
    pictures.insert(rng.randrange(4), words(number))
    context = f"{_marks(4)} Question: what number is written in one of the pictures?"
    return pictures, {"context": context}, number


def _name(rng: random.Random) -> Made:
    things = [(color, rng.choice(SHAPES)) for color in rng.sample(list(COLORS), 3)]
    color, shape = things[1]
    context = f"{_marks(3)} Question: which shape is {color}?"
    return [shapes([thing]) for thing in things], {"context": context}, shape


MINIATURES = {"MileBench": make_milebench}
