"""Miniatures of MMLongBench: every set of a task group in the published tree, a few hundred to thousands of tokens."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlm.eval.benchmark import Benchmark
from vlm.eval.mini.draw import COLORS, SHAPES, Picture, save, shapes, words, write_lines
from vlm.eval.mini.questions import jsonl

TOKENS_PER_PAGE = 512
"""Share of a length, in tokens, for which a miniature has one passage or picture."""

THINGS = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
PLACES = ("Oslo", "Lima", "Cairo", "Quito", "Turin", "Perth")
Draw = Callable[[str, Picture], str]
"""function(name, picture) -> path below the folder of images, where the picture then is."""


def make_mmlongbench(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` questions of each set (usually 2), with 2 to 32 passages, examples or pages by the length."""
    n, length = n or 2, benchmark.name.rsplit("-", 1)[1].removesuffix("k")
    size = max(3, int(length) * 128 // TOKENS_PER_PAGE)
    for name, about in benchmark.options["sets"].items():
        path = folder / "mmlb_data" / about["file"].format(length=length)

        def draw(place: str, picture: Picture, name: str = name) -> str:
            save(picture, folder / "mmlb_image" / name / place)
            return f"{name}/{place}"

        if about["form"] == "examples":
            write_lines(path, json.dumps(_domain(rng, draw, size, n)))
            continue
        rows = [{"id": f"{name}_{k}", "depth": k, **RECORDS[about["form"]](name, k, size, rng, draw)} for k in range(n)]
        if "claims" in about:
            points = [{"id": row["id"], "claims": row.pop("claims")} for row in rows]
            write_lines(folder / "mmlb_data" / about["claims"], jsonl(points))
        write_lines(path, jsonl(rows))
    return dict.fromkeys(benchmark.options["sets"], n)


def _picture(thing: str) -> Picture:
    color, shape = thing.split()
    return shapes([(color, shape)])


def _entity(name: str, k: int, size: int, rng: random.Random, draw: Draw) -> dict[str, Any]:
    things = rng.sample(THINGS, min(size, len(THINGS)))
    places = [rng.choice(PLACES) for _ in things]
    passages = [
        {"doc_id": str(i), "title": thing, "text": f"The {thing} was found in {place} and is kept in a museum there."}
        for i, (thing, place) in enumerate(zip(things, places, strict=True))
    ]
    at = rng.randrange(len(things))
    return {
        "image": draw(f"{k}.png", _picture(things[at])),
        "question": "Where was this found?",
        "answer": [places[at]],
        "ctxs": passages,
        "positive_ctxs": [passages[at]],
    }


def _haystack(name: str, k: int, size: int, rng: random.Random, draw: Draw) -> dict[str, Any]:
    things = rng.sample(THINGS, min(size, len(THINGS) - 1))
    asked = things[0] if k % 2 else next(thing for thing in THINGS if thing not in things)
    images = [draw(f"{k}_{i}.png", _picture(thing)) for i, thing in enumerate(rng.sample(things, len(things)))]
    return {"ctxs": images, "question": f"Is there a {asked} in the images?", "answer": "Yes" if k % 2 else "No"}


def _document(size: int, rng: random.Random, needles: list[str]) -> list[dict[str, str]]:
    """Write paragraphs about places, with `needles` among them, in their order."""
    texts = [f"In {rng.choice(PLACES)} the market opens at {rng.randint(5, 11)} in the morning." for _ in range(size)]
    for at, needle in sorted(zip(sorted(rng.sample(range(size), len(needles))), needles, strict=True), reverse=True):
        texts.insert(at, needle)
    return [{"text": text} for text in texts]


def _interleaved(name: str, k: int, size: int, rng: random.Random, draw: Draw) -> dict[str, Any]:
    image = [draw(f"{k}.png", _picture(rng.choice(THINGS)))]
    if name.startswith("counting"):
        counts = [rng.randint(1, 4) for _ in range(2)]
        told = [f"The little penguin counted {count} stars." for count in counts]
        question = "How many stars did the little penguin count, each time? Give a list."
        return {"ctxs": _document(size, rng, ["<image>", *told]), "image_list": image, "question": question,
                "answer": counts}  # fmt: skip
    first, second = rng.sample(["lamp", "clock", "violin"], 2)
    told = [f"The {first} is older than the {second}."]
    return {"ctxs": _document(size, rng, ["<image>", *told]), "image_list": image,
            "question": f"Which is older, the {first} or the {second}?", "answer": f"the {first}"}  # fmt: skip


def _counting(name: str, k: int, size: int, rng: random.Random, draw: Draw) -> dict[str, Any]:
    needle, other = rng.sample([(color, shape) for color in COLORS for shape in SHAPES], 2)
    counts = [rng.randint(0, 2) for _ in range(2)]
    images = [draw(f"{k}_{i}.png", shapes([other] + [needle] * count)) for i, count in enumerate(counts)]
    return {
        "ctxs": _document(size, rng, ["<image>", "<image>"]),
        "image_list": images,
        "needle_image_list": [draw(f"{k}_needle.png", shapes([needle]))],
        "question": "How often is <image> in each picture above? Give a list.",
        "answer": counts,
    }


def _choice(name: str, k: int, size: int, rng: random.Random, draw: Draw) -> dict[str, Any]:
    options = rng.sample(THINGS, 4)
    answer = rng.randrange(4)
    return {
        "ctxs": _document(size, rng, ["<image>"]),
        "image_list": [draw(f"{k}.png", _picture(options[answer]))],
        "choices_image": [draw(f"{k}_choice{i}.png", _picture(thing)) for i, thing in enumerate(options)],
        "question": "Which of these pictures is among those above?",
        "answer": answer,
    }


def _pages(name: str, k: int, size: int, rng: random.Random, draw: Draw) -> tuple[list[str], int, str]:
    """Draw pages of one document, one of them with a word; return the pages, which one, and the word."""
    at, word = rng.randrange(size), rng.choice(["Lantern", "Harbour", "Meadow", "Thunder", "Compass"])
    pages = [words(f"{word} {k}" if i == at else f"page {i}") for i in range(size)]
    return [draw(f"{name}-{k}/{name}-{k}_page{i}.png", page) for i, page in enumerate(pages)], at, f"{word} {k}"


def _questions(name: str, k: int, size: int, rng: random.Random, draw: Draw) -> dict[str, Any]:
    pages, at, word = _pages(name, k, size, rng, draw)
    kinds = {
        "String": (f"What is written on page {at}?", word),
        "Integer": (f"Which page, from 0, says {word}?", str(at)),
        "List": (f"What is written on page {at}, and how many pages are there?", json.dumps([word, size])),
        "Float": (f"Which share of the pages says {word}, in percent?", f"{100 / size:.1f}%"),
        "None": ("Who signed the document?", "Not answerable"),
    }
    kind = list(kinds)[k % len(kinds)]
    question, answer = kinds[kind]
    about = {"doc_name": f"{name}-{k}", "page_list": pages, "ans_page_list": [at]}
    return about | {"question": question, "answer": answer, "answer_format": kind}


def _report(name: str, k: int, size: int, rng: random.Random, draw: Draw) -> dict[str, Any]:
    pages, at, word = _pages(name, k, size, rng, draw)
    told = [{"section_title": "What GAO Found", "paragraphs": [f"Page {at} says {word}."]}]
    return {"image_list": pages, "summary": told, "claims": [f"Page {at} says {word}."]}


def _case(name: str, k: int, size: int, rng: random.Random, draw: Draw) -> dict[str, Any]:
    pages, at, word = _pages(name, k, size, rng, draw)
    claims = [f"The case is about {word}.", f"Page {at} names {word}."]
    return {"image_list": pages, "summary": f"The case is about {word}, named on page {at}.", "claims": claims}


def _domain(rng: random.Random, draw: Draw, size: int, n: int) -> dict[str, Any]:
    """Return one domain: two lists of examples in rounds, one picture of each class a round, and test pictures."""
    classes = rng.sample(THINGS, 4)
    pictures = [draw(f"class{label}.png", _picture(thing)) for label, thing in enumerate(classes)]
    one = [{"image": path, "id": label} for label, path in enumerate(pictures)]
    asked = [rng.randrange(4) for _ in range(n)]
    tests = [
        {"image": draw(f"test{k}.png", _picture(classes[label])), "answer": label} for k, label in enumerate(asked)
    ]
    rounds = [one] * max(1, size // 4)
    return {"shapes": {"exemplar_list": [rounds, rounds], "test_example": tests}}


RECORDS: dict[str, Callable[[str, int, int, random.Random, Draw], dict[str, Any]]] = {
    "case": _case,
    "choice": _choice,
    "counting": _counting,
    "document": _questions,
    "entity": _entity,
    "haystack": _haystack,
    "interleaved": _interleaved,
    "report": _report,
}
"""Form of a set (vlm.eval.loaders.mmlongbench) -> function that draws its pictures and returns its record."""

MINIATURES = {f"MMLongBench-{group}": make_mmlongbench for group in ("vrag", "niah", "icl", "summ", "docqa")}
