"""Miniatures of MM-NIAH (six tasks), of its long variants (four), sets of digit-haystack, and of the V2PE study."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm.core.synth.haystack import NEEDLE, QUESTION
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.haystack import annotation_file
from vlm.eval.mini.draw import COLORS, SHAPES, digit, save, shapes, write_lines
from vlm.eval.mini.questions import jsonl

TOKENS_PER_IMAGE = 256
"""Tokens of an image in the `context_length` of the published records."""

LENGTHS = (1100, 2100, 4100, 8100)
"""Context lengths in tokens: one for each of the first published columns."""

DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
SENTENCES = (
    "The lake is quiet in the morning and a small boat crosses it.",
    "Bread and tea are sold at the corner of the old street.",
    "A train leaves the station every hour until late at night.",
    "Snow fell on the hills while the children were at school.",
    "The library keeps maps of every village in the valley.",
    "Two dogs run along the beach and a man follows them.",
)
THINGS = [(color, shape) for color in COLORS for shape in SHAPES]


def _tokens(text: str) -> int:
    return len(text) // 4


def _document(rng: random.Random, n_sentences: int, pieces: list[tuple[float, str]]) -> str:
    """Write `n_sentences` sentences with each piece inserted at its depth (0 to 1)."""
    lines = [rng.choice(SENTENCES) for _ in range(n_sentences)]
    for depth, piece in sorted(pieces, reverse=True):
        lines.insert(round(depth * n_sentences), piece)
    return "\n".join(lines) + "\n"


def _record(number: int, context: str, images: list[str], question: str, answer: Any, **meta: Any) -> dict[str, Any]:
    text, pictures = _tokens(context.replace("<image>", "")), TOKENS_PER_IMAGE * len(images)
    known = {
        "context_length": text + pictures,
        "context_length_text": text,
        "context_length_image": pictures,
        "num_images": len(images),
        "choices": None,
        "choices_image_path": None,
    }
    record = {"id": number, "images_list": images, "context": context, "question": question, "answer": answer}
    return record | {"meta": known | meta}


def make_mmniah(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` samples (usually 6) of each task, in turn at every length and depth."""
    n, tasks = n or 6, benchmark.options["tasks"]
    for task in tasks:
        _write_task(
            task, annotation_file(benchmark, folder, task), folder / benchmark.options["images"], LENGTHS, rng, n
        )
    return dict.fromkeys(tasks, n)


def make_mmniah_long(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` samples (usually 5) of each task, at one 256th of the published lengths: 0.25k to 4.7k tokens."""
    n, tasks = n or 5, benchmark.options["tasks"]
    low, high = benchmark.options["lengths"][benchmark.name.rsplit("-", 1)[1]].split("_")
    lengths = (4 * int(low), 3 * (int(low) + int(high)) // 2, 4 * int(high))
    for task in tasks:
        _write_task(
            task, annotation_file(benchmark, folder, task), folder / benchmark.options["images"][0], lengths, rng, n
        )
    return dict.fromkeys(tasks, n)


def _write_task(task: str, annotations: Path, images: Path, lengths: Sequence[int], rng: random.Random, n: int) -> None:
    rows = []
    for k in range(n):
        length, depth = lengths[k % len(lengths)], DEPTHS[k % len(DEPTHS)]

        def draw(name: str, things: list[tuple[str, str]], k: int = k) -> str:
            path = f"{task}/{k}_{name}.png"
            save(shapes(things), images / path)
            return path

        rows.append(TASKS[task](k, length, depth, rng, draw))
    write_lines(annotations, jsonl(rows))


def _fill(length: int, n_images: int) -> int:
    """Return the number of sentences that make a document of `length` tokens with its images."""
    return max(4, (length - TOKENS_PER_IMAGE * n_images) * 4 // (sum(map(len, SENTENCES)) // len(SENTENCES) + 1))


def _retrieval_text(k: int, length: int, depth: float, rng: random.Random, draw: Any) -> dict[str, Any]:
    place, thing = rng.choice(["kitchen", "garden", "cellar"]), rng.choice(["lamp", "clock", "violin"])
    needle = f"The little penguin hid a {thing} in the {place}."
    image = draw("a", [rng.choice(THINGS)])
    context = _document(rng, _fill(length, 1), [(0.0, "<image>"), (depth, needle)])
    question = f"What did the little penguin hide in the {place}?"
    return _record(k, context, [image], question, thing, placed_depth=[depth], needles=[needle])


def _retrieval_image(k: int, length: int, depth: float, rng: random.Random, draw: Any) -> dict[str, Any]:
    options = rng.sample(THINGS, 4)
    answer = rng.randrange(4)
    others = [thing for thing in THINGS if thing not in options]
    images = [draw("a", [options[answer], rng.choice(others)]), draw("b", [rng.choice(others)])]
    places = [depth, 0.99 if depth < 0.5 else 0.0]
    images = images if places[0] < places[1] else images[::-1]
    context = _document(rng, _fill(length, 2), [(place, "<image>") for place in places])
    choices = [draw(f"choice{i}", [thing]) for i, thing in enumerate(options)]
    question = "Which of the following pictures appears in one of the pictures above?"
    meta = {"placed_depth": [depth], "needles": [choices[answer]], "choices_image_path": choices}
    return _record(k, context, images, question, answer, **meta)


def _counting_text(k: int, length: int, depth: float, rng: random.Random, draw: Any) -> dict[str, Any]:
    counts = [rng.randint(1, 4) for _ in range(2)]
    places = [depth / 2, depth]
    needles = [f"The little penguin counted {count} stars." for count in counts]
    image = draw("a", [rng.choice(THINGS)])
    pieces = [(0.0, "<image>"), *zip(places, needles, strict=True)]
    context = _document(rng, _fill(length, 1), pieces)
    question = "How many stars did the little penguin count, each time? Give a JSON list in the order of the document."
    return _record(k, context, [image], question, counts, placed_depth=places, needles=needles)


def _counting_image(k: int, length: int, depth: float, rng: random.Random, draw: Any) -> dict[str, Any]:
    needle, other = rng.sample(THINGS, 2)
    counts = [rng.randint(0, 2) for _ in range(2)]
    images = [draw(f"{i}", [other] + [needle] * count) for i, count in enumerate(counts)]
    places = [depth / 2, depth]
    context = _document(rng, _fill(length, 2), [(place, "<image>") for place in places])
    question = (
        "How often does this appear in each picture above? <image> Give a JSON list, one number for each picture."
    )
    images.append(draw("needle", [needle]))
    return _record(k, context, images, question, counts, placed_depth=places, needles=[images[-1]])


def _reasoning_text(k: int, length: int, depth: float, rng: random.Random, draw: Any) -> dict[str, Any]:
    first, second = rng.sample(["Ada", "Bo", "Eve"], 2)
    needles = [f"{first} is older than Kim.", f"Kim is older than {second}."]
    places = [depth / 2, depth]
    image = draw("a", [rng.choice(THINGS)])
    context = _document(rng, _fill(length, 1), [(0.0, "<image>"), *zip(places, needles, strict=True)])
    question = f"Who is the oldest of {second}, Kim and {first}?"
    return _record(k, context, [image], question, first, placed_depth=places, needles=needles)


def _reasoning_image(k: int, length: int, depth: float, rng: random.Random, draw: Any) -> dict[str, Any]:
    pair = rng.sample(THINGS, 2)
    images = [draw("a", pair), draw("b", pair[::-1])]
    choices = [" ".join(thing) for thing in pair]
    context = _document(rng, _fill(length, 2), [(depth / 2, "<image>"), (depth, "<image>")])
    answer = rng.randrange(2)
    question = f"What is on the {'left' if answer else 'right'} in the second picture?"
    meta = {"placed_depth": [depth / 2, depth], "needles": images, "choices": choices}
    return _record(k, context, images, question, answer, **meta)


TASKS = {
    "retrieval-text": _retrieval_text,
    "retrieval-image": _retrieval_image,
    "counting-text": _counting_text,
    "counting-image": _counting_image,
    "reasoning-text": _reasoning_text,
    "reasoning-image": _reasoning_image,
}


def make_digit_haystack(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` samples (usually 20) with a digit among pictures of shapes, at five depths of three lengths.

    Variant 1x has 2, 3 and 4 pictures and a sentence after each; variant 4x has four times as many, and so on.
    """
    n, (task,) = n or 20, benchmark.options["tasks"]
    factor = int(benchmark.name.rsplit("-", 1)[1].removesuffix("x"))
    rows = []
    for k in range(n):
        depth, n_images, value = DEPTHS[k % len(DEPTHS)], factor * (2 + k // len(DEPTHS) % 3), rng.randrange(10)
        at = min(int(depth * n_images), n_images - 1)
        images = []
        for i in range(n_images):
            images.append(f"{k}_{i}.png")
            picture = digit(value) if i == at else shapes([rng.choice(THINGS)])
            save(picture, folder / benchmark.options["images"] / images[-1])
        context = "".join(f"<image>\n{rng.choice(SENTENCES)}\n" for _ in images)
        question = "Which digit is hidden in the pictures?"
        rows.append(_record(k, context, images, question, str(value), placed_depth=[depth], needles=[images[at]]))
    write_lines(folder / benchmark.options["annotations"] / f"{task}.jsonl", jsonl(rows))
    return {task: n}


def make_mini_v2pe(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` documents (usually 4) of each task: two digits among pictures of shapes, or a number in a sentence."""
    n, tasks = n or 4, benchmark.options["tasks"]
    for task in tasks:
        *kind, length = task.split("-")
        rows = []
        for k in range(n):
            n_images = 2 + int(length.removesuffix("x"))
            values, places = rng.sample(range(10), 2), sorted(rng.sample(range(n_images), 2))
            images = [f"{task}_{k}_{i}.png" for i in range(n_images)]
            for i, name in enumerate(images):
                hides = i in places and not kind
                picture = digit(values[places.index(i)]) if hides else shapes([rng.choice(THINGS)])
                save(picture, folder / benchmark.options["images"] / name)
            lines = [rng.choice(SENTENCES) for _ in images]
            needles = [images[i] for i in places]
            if kind:
                places, needles = places[:1], [NEEDLE.format(values[0])]
                lines[places[0]] = needles[0]
            context = "".join(f"<image>\n{line}\n" for line in lines)
            about = {"placed_depth": [i / n_images for i in places], "needles": needles}
            question = QUESTION["text" if kind else "order"]
            rows.append(_record(k, context, images, question, str(values[0]), **about))
        write_lines(annotation_file(benchmark, folder, task), jsonl(rows))
    return dict.fromkeys(tasks, n)


MINIATURES = {
    "MM-NIAH": make_mmniah,
    "MM-NIAH-long": make_mmniah_long,
    "digit-haystack": make_digit_haystack,
    "mini-v2pe": make_mini_v2pe,
}
