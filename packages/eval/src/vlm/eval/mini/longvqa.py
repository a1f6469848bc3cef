"""Miniature of Long-VQA: all 17 tasks in the published tree, each a question about one picture among others."""

import random
from collections.abc import Callable
from pathlib import Path

from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.longvqa import annotation_file, image_folder, length_group
from vlm.eval.mini.draw import COLORS, SHAPES, Picture, bars, save, shapes, words, write_lines
from vlm.eval.mini.questions import SHORT, jsonl

TOKENS_PER_IMAGE = 256
Asked = tuple[Picture, str, str]
"""A picture, a question about `{it}`, its answer."""


def make_longvqa(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` samples (usually 2) of each task; a longer variant shows more pictures before the question."""
    n, tasks = n or 2, benchmark.options["tasks"]
    n_images = length_group(benchmark)[1] // 8 - 1  # 3 to 7: a miniature is short; only the order of lengths is real
    for task in tasks:
        rows = []
        for k in range(n):
            made = [MAKERS[task](rng) for _ in range(n_images)]
            at = rng.randrange(n_images)
            names = [f"{k}_{i}.png" for i in range(n_images)]
            for name, (picture, _, _) in zip(names, made, strict=True):
                save(picture, image_folder(benchmark, folder, task) / name)
            _, question, answer = made[at]
            asked = "<image>\n" * n_images + question.format(it=f"picture {at + 1}") + f"\n{SHORT}"
            turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
            length = TOKENS_PER_IMAGE * n_images + len(asked) // 4
            about = {"context_length": length}
            rows.append({"id": k, "image": names, "conversations": turns, "metadata": about})
        write_lines(annotation_file(benchmark, folder, task), jsonl(rows))
    return dict.fromkeys(tasks, n)


def _things(rng: random.Random) -> list[tuple[str, str]]:
    return list(zip(rng.sample(list(COLORS), 2), rng.sample(SHAPES, 2), strict=True))


def _bar(rng: random.Random) -> Asked:
    values = dict(zip(["Ada", "Bo", "Cy", "Dan"], rng.sample(range(5, 100), 4), strict=True))
    name = rng.choice(list(values))
    return bars(values), f"What is the value of {name} in {{it}}?", str(values[name])


def _highest(rng: random.Random) -> Asked:
    values = dict(zip(["Ada", "Bo", "Cy", "Dan"], rng.sample(range(5, 100), 4), strict=True))
    return bars(values), "Which bar of {it} is the highest?", max(values, key=lambda name: values[name])


def _count(rng: random.Random) -> Asked:
    things = [(rng.choice(list(COLORS)), rng.choice(SHAPES)) for _ in range(rng.randint(1, 5))]
    return shapes(things), "How many things are in {it}?", str(len(things))


def _color(rng: random.Random) -> Asked:
    things = _things(rng)
    color, shape = rng.choice(things)
    return shapes(things), f"What is the color of the {shape} in {{it}}?", color


def _letter(rng: random.Random) -> Asked:
    (color, shape), other = _things(rng)
    wrong = rng.sample([name for name in COLORS if name != color], 3)
    options = rng.sample([color, *wrong], 4)
    listed = "".join(f"\n{letter}. {option}" for letter, option in zip("ABCD", options, strict=True))
    return (
        shapes([(color, shape), other]),
        f"Which color has the {shape} in {{it}}?{listed}",
        "ABCD"[options.index(color)],
    )


def _claim(rng: random.Random) -> Asked:
    things = _things(rng)
    color, shape = things[0]
    told = rng.choice([color, *(name for name in COLORS if name != color)][:2])
    return shapes(things), f"Is it true that the {shape} in {{it}} is {told}?", "Yes" if told == color else "No"


def _caption(rng: random.Random) -> Asked:
    things = _things(rng)
    (a, b), (c, d) = things
    return shapes(things), "Describe {it} in one sentence.", f"a {a} {b} on the left of a {c} {d}"


def _card(rng: random.Random) -> Asked:
    label = rng.choice(["Total", "Invoice", "Year", "Seats"])
    number = str(rng.randrange(100, 10_000))
    return words(f"{label}: {number}"), f"What number follows the word {label} on the card in {{it}}?", number


def _name(rng: random.Random) -> Asked:
    name = rng.choice(["Lantern", "Harbour", "Meadow", "Thunder", "Compass"])
    return words(name), "Which word is written in {it}?", name


def _sentence(rng: random.Random) -> Asked:
    place, hour = rng.choice(["Oslo", "Lima", "Cairo"]), rng.randint(2, 11)
    text = f"The bus to {place} leaves at {hour} in the morning"
    return words(text, width=400, size=16), "What does the card in {it} say?", text


MAKERS: dict[str, Callable[[random.Random], Asked]] = {
    "chartqa": _bar,
    "clevr": _count,
    "deepform": _card,
    "docvqa": _name,
    "dvqa": _highest,
    "gqa": _color,
    "infovqa": _highest,
    "kleistercharity": _card,
    "ocrvqa": _name,
    "okvqa": _color,
    "svqa": _letter,
    "tabfact": _claim,
    "textcaps": _caption,
    "textvqa": _name,
    "visualmrc": _sentence,
    "vizwiz": _color,
    "wikitablequestions": _bar,
}
"""Task -> function that draws and asks, with answers of the kind that its metric is for."""


MINIATURES = {"Long-VQA": make_longvqa}
