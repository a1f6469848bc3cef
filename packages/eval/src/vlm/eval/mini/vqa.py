"""Miniatures of the open-question sets: DocVQA, InfoVQA, TextVQA, VizWiz, GQA, AI2D."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from vlm.eval.benchmark import Benchmark
from vlm.eval.mini.draw import COLORS, SHAPES, Picture, bars, font, save, shapes, words, write_lines
from vlm.eval.mini.questions import jsonl

LETTER = "Answer with the option's letter from the given choices directly."
NAMES = ("Ada", "Bo", "Cy", "Dan", "Eve", "Fay")
WORDS = ("BAKERY", "STOP", "EXIT", "LIBRARY", "HOTEL", "MUSEUM", "MILK", "POST")
Asked = tuple[Picture, str, Any, str]
"""A picture, a question, its answer(s), and GQA's structural type."""


def page(lines: list[str], width: int = 320) -> Picture:
    """Draw lines of text below each other, as on a form."""
    picture = Image.new("RGB", (width, 30 * len(lines) + 20), "white")
    draw = ImageDraw.Draw(picture)
    for i, line in enumerate(lines):
        draw.text((16, 14 + 30 * i), line, fill="black", font=font(20))
    return picture


def ten(answer: str, other: str) -> list[str]:
    """Return ten answers of people, eight of which agree."""
    return [answer] * 8 + [other] * 2


def _form(rng: random.Random) -> Asked:
    number, customer, total = str(rng.randrange(1000, 9999)), rng.choice(NAMES), str(rng.randrange(10, 99))
    picture = page([f"Invoice {number}", f"Customer: {customer}", f"Total: {total} euros"])
    question, answers = rng.choice(
        [
            ("What is the invoice number?", [number, f"Invoice {number}"]),
            ("Who is the customer?", [customer]),
            ("What is the total?", [f"{total} euros", total]),
        ]
    )
    return picture, question, answers, ""


def _chart(rng: random.Random) -> Asked:
    values = dict(zip(rng.sample(NAMES, 4), rng.sample(range(5, 100), 4), strict=True))
    name = rng.choice(list(values))
    question, answer = rng.choice(
        [
            (f"What is the number of {name}?", str(values[name])),
            ("Who has the largest number?", max(values, key=lambda key: values[key])),
        ]
    )
    return bars(values), question, [answer], ""


def _sign(rng: random.Random) -> Asked:
    word = rng.choice(WORDS)
    return words(word), "what word is written here?", ten(word.lower(), "sign"), ""


def _photograph(rng: random.Random) -> Asked:
    if rng.random() < 0.4:
        return Image.new("RGB", (160, 64), COLORS["gray"]), "What does this say?", ten("unanswerable", "gray"), ""
    word = rng.choice(WORDS)
    return words(word), "What does this say?", ten(word.lower(), "unanswerable"), ""


def _scene(rng: random.Random) -> Asked:
    things = list(zip(rng.sample(list(COLORS), 2), rng.sample(SHAPES, 2), strict=True))
    color, shape = rng.choice(things)
    if rng.random() < 0.5:
        return shapes(things), f"What color is the {shape}?", color, "query"
    asked = rng.choice([color, rng.choice(list(COLORS))])
    return shapes(things), f"Is the {shape} {asked}?", "yes" if asked == color else "no", "verify"


def _diagram(rng: random.Random) -> Asked:
    order = rng.sample(SHAPES, 3)
    picture = shapes([("teal", shape) for shape in order])
    draw = ImageDraw.Draw(picture)
    labels = rng.sample("PQR", 3)
    for i, label in enumerate(labels):
        draw.text((64 * i + 32, 2), label, fill="black", font=font(12), anchor="mt")
    at, options = rng.randrange(3), rng.sample(SHAPES, 3)
    lines = [f"{letter}. {shape}" for letter, shape in zip("ABC", options, strict=True)]
    question = "\n".join([f"Which shape is labelled {labels[at]}?", *lines, LETTER])
    return picture, question, "ABC"[options.index(order[at])], ""


ASKED: dict[str, tuple[str, Callable[[random.Random], Asked]]] = {
    "DocVQA": ("{split}/documents/{k}.png", _form),
    "InfoVQA": ("infographicsvqa_images/{k}.png", _chart),
    "TextVQA": ("train_images/{k}.png", _sign),
    "VizWiz": ("{split}/VizWiz_{split}_{k:08d}.png", _photograph),
    "GQA": ("images/n{k}.png", _scene),
    "AI2D": ("AI2D_TEST/{k}.png", _diagram),
}
"""Benchmark -> (path of its images, function that draws and asks)."""


def make_vqa(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` questions (usually 24), each about another picture; no answers for sets that a server scores."""
    n, split, name = n or 24, benchmark.options["split"], benchmark.name.removesuffix("-test")
    pattern, ask = ASKED[name]
    rows, answers = [], []
    for k in range(n):
        picture, question, answer, structural = ask(rng)
        image = pattern.format(split=split, k=k)
        save(picture, folder / image)
        path = f"data/{benchmark.folder}/{image}"
        number = path if benchmark.name in ("AI2D", "VizWiz-test") else 1000 + k
        row = {"image": path, "question": question, "question_id": str(number) if name == "GQA" else number}
        rows.append(row if benchmark.server_scored else row | {"answer": answer})
        answers.append((row["question_id"], question, answer, structural))
    write_lines(folder / benchmark.options["questions"], jsonl(rows))
    if about := benchmark.options.get("annotation"):
        write_lines(folder / about["file"], json.dumps(_annotations(about["format"], answers)))
    return {split: n}


def _annotations(kind: str, answers: list[tuple[Any, str, Any, str]]) -> dict[str, Any]:
    if kind == "rrc":
        data = [{"questionId": number, "question": asked, "answers": answer} for number, asked, answer, _ in answers]
        return {"dataset_name": "miniature", "dataset_split": "val", "data": data}
    if kind == "vqa":
        entries = []
        for number, asked, ten_answers, _ in answers:
            each = [{"answer_id": i + 1, "answer": answer} for i, answer in enumerate(ten_answers)]
            entries.append({"question_id": number, "question": asked, "answers": each})
        return {"annotations": entries}
    return {
        number: {"question": asked, "answer": answer, "types": {"structural": structural}}
        for number, asked, answer, structural in answers
    }


MINIATURES = dict.fromkeys(
    ["AI2D", "DocVQA", "DocVQA-test", "GQA", "InfoVQA", "InfoVQA-test", "TextVQA", "VizWiz", "VizWiz-test"], make_vqa
)
