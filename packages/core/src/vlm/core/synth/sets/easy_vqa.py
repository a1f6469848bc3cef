"""easy-VQA as a training set: each record is one picture with some of its questions as turns, answered by one word."""

import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.core.synth.vqa_records import vqa_record, write_jsonl

if TYPE_CHECKING:
    from vlm.core.organize.organize_set import OrganizeOptions

COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")

DESCRIBE = "What is in the picture?"
"""The question of descriptions.jsonl, as the photographs have it."""


def organize_easy_vqa(sources: dict[str, Path], out: Path, options: "OrganizeOptions") -> None:
    """Write train.jsonl, captions.jsonl and descriptions.jsonl.

    train.jsonl has all training questions exactly once, shuffled within a picture; the last record of a picture may be
    shorter. captions.jsonl has one record a picture, with the questions that say what it shows (shape and color).
    descriptions.jsonl says both in one sentence, where the answers of a picture tell both. The official test split
    stays as published, for the benchmark.
    """
    questions: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, picture in json.loads((sources["easy-vqa"] / "train" / "questions.json").read_text()):
        questions[picture].append((question, answer))
    records: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    descriptions: list[dict[str, Any]] = []
    for picture, turns in sorted(questions.items()):
        name, image = f"easy-vqa/{picture}", f"train/images/{picture}.png"
        random.Random(f"easy-vqa/{options.seed}/{picture}").shuffle(turns)
        for start in range(0, len(turns), options.questions_per_record):
            chosen = turns[start : start + options.questions_per_record]
            records.append(vqa_record(f"{name}/{start}", image, chosen))
        if telling := [turn for turn in turns if turn[1] not in ("yes", "no")]:
            captions.append(vqa_record(f"{name}/caption", image, telling))
        if sentence := describe(turns):
            descriptions.append(vqa_record(f"{name}/description", image, [(DESCRIBE, sentence)]))
    write_jsonl(out / "descriptions.jsonl", descriptions)
    write_jsonl(out / "captions.jsonl", captions)
    write_jsonl(out / "train.jsonl", records)


def describe(turns: Iterable[tuple[str, str]]) -> str | None:
    """Return the sentence that questions and answers about one picture amount to; None if color or shape stays open.

    >>> describe([("what color is the circle?", "red"), ("is there a blue shape?", "no")])
    'A red circle.'
    >>> describe([("is there not a teal shape?", "no"), ("is no triangle present?", "no")])
    'A teal triangle.'
    >>> describe([("is there a teal shape?", "no"), ("what shape is present?", "circle")])
    """
    told = set[str]()
    for question, answer in turns:
        words = re.findall("[a-z]+", question)
        # no other question denies what it names: "what color is the circle?" tells the circle
        denied = answer in ("yes", "no") and (answer == "no") != ("no" in words or "not" in words)
        if not denied:
            told |= {*words, answer}
    color, shape = (next((word for word in names if word in told), None) for names in (COLORS, SHAPES))
    return f"A {color} {shape}." if color and shape else None
