"""MMMU: 30 subjects, a folder of parquet files each, several images per question as bytes inside."""

import ast
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from vlm.core.errors import DataError
from vlm.core.home import read_json
from vlm.core.sample.records import Message
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.choice import choice_question
from vlm.eval.loaders.common import FETCH, CountTokens, Item, Items, get, user
from vlm.eval.loaders.parquet import read_parquet
from vlm.eval.loaders.pictures import picture_file

COLUMNS = ["id", "question", "options", "question_type", *[f"image_{i}" for i in range(1, 8)]]


def load_mmmu(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load `<Subject>/<split>-*.parquet` in the published order of subjects, which are the groups.

    Answers of the validation split are in `answer_dict_val.json`, as published (some open questions have several).

    Raises:
        DataError: Also for a question that is not in the answers.
    """
    items, split, scored = Items(), benchmark.options["split"], not benchmark.server_scored
    official = folder / benchmark.options["answers"]
    answers = read_json(official, fix=FETCH) if scored else {}
    for subject in benchmark.counts.groups if benchmark.counts else []:
        for path in sorted((folder / subject).glob(f"{split}-*.parquet")):
            for where, record in read_parquet(path, COLUMNS):
                number = get(record, "id", str, where)
                answer = get(answers, number, dict, str(official)) if scored else {"ground_truth": None}
                gold = answer.get("ground_truth")
                kind, options = get(record, "question_type", str, where), _options(record, where)
                suffix = benchmark.prompt["choice" if kind == "multiple-choice" else "open"]
                prompt = choice_question(get(record, "question", str, where).strip(), options, suffix)
                pictures = [p for i in range(1, 8) if (p := record[f"image_{i}"]) is not None]
                images = _images(benchmark, folder, [get(p, "bytes", bytes, where) for p in pictures], where)
                meta = {"question_type": kind, "options": options}
                item = Item(number, _message(benchmark, prompt, images, where), gold, subject, meta)
                items.add(item, where=where, images=images, needs_answer=scored)
    return items.finish(benchmark, folder)


def _options(record: dict[str, Any], where: str) -> dict[str, str]:
    """Read the published column, which holds the text of a Python list."""
    value = get(record, "options", str, where)
    try:
        texts = ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
        raise DataError(f"{where}: `options` is {value!r:.60}", expected="the text of a list") from error
    if not isinstance(texts, list) or len(texts) > 13 or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: `options` is {value!r:.60}", expected="a list of at most 13 texts")
    return {letter: text.strip() for letter, text in zip(ascii_uppercase, texts, strict=False)}


def _images(benchmark: Benchmark, folder: Path, pictures: Sequence[bytes], where: str) -> list[Path]:
    """Choose the images: `first`, `all`, or `named` (the first one twice as large, the others one tile)."""
    rule = benchmark.options["images"]
    shown = pictures[:1] if rule == "first" else pictures
    changes = ["2x", *["448"] * (len(shown) - 1)] if rule == "named" else [""] * len(shown)
    return [picture_file(folder, data, where, change) for data, change in zip(shown, changes, strict=True)]


def _message(benchmark: Benchmark, prompt: str, images: list[Path], where: str) -> list[Message]:
    if benchmark.options["images"] == "named":
        names = ", ".join(benchmark.prompt["name"].format(number=i + 1) for i in range(len(images)))
        prompt = f"{names}\n{prompt}"
    return user(prompt, images, where)


LOADERS = {"mmmu": load_mmmu}
