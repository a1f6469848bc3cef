"""easy-VQA as a training set: each record is one picture with some of its questions as turns, answered by one word."""

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.core.synth.vqa_records import vqa_record, write_jsonl

if TYPE_CHECKING:
    from vlm.core.organize.organize_set import OrganizeOptions


def organize_easy_vqa(sources: dict[str, Path], out: Path, options: "OrganizeOptions") -> None:
    """Write train.jsonl and captions.jsonl.

    train.jsonl has all training questions exactly once, shuffled within a picture; the last record of a picture may be
    shorter. captions.jsonl has one record a picture, with the questions that say what it shows (shape and color). The
    official test split stays as published, for the benchmark.
    """
    questions: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, picture in json.loads((sources["easy-vqa"] / "train" / "questions.json").read_text()):
        questions[picture].append((question, answer))
    records: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    for picture, turns in sorted(questions.items()):
        random.Random(f"easy-vqa/{options.seed}/{picture}").shuffle(turns)
        for start in range(0, len(turns), options.questions_per_record):
            chosen = turns[start : start + options.questions_per_record]
            records.append(vqa_record(f"easy-vqa/{picture}/{start}", f"train/images/{picture}.png", chosen))
        if telling := [turn for turn in turns if turn[1] not in ("yes", "no")]:
            captions.append(vqa_record(f"easy-vqa/{picture}/caption", f"train/images/{picture}.png", telling))
    write_jsonl(out / "captions.jsonl", captions)
    write_jsonl(out / "train.jsonl", records)
