"""Questions with lettered options: ScienceQA, SEED-Bench (images), MMBench and CCBench."""

import base64
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError
from vlm.core.home import read_json
from vlm.core.sample.records import iter_jsonl
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.common import FETCH, CountTokens, Item, Items, get, inside, user
from vlm.eval.loaders.pictures import picture_file

LETTERS = "ABCDE"
ROTATION = 1_000_000
"""Copy k of MMBench question i, its options rotated by k, has the index i + k * ROTATION."""


def choice_question(question: str, options: Mapping[str, str], suffix: str, hint: str = "") -> str:
    r"""Join the hint (if any), the question, `A. text` lines and the instruction by line breaks.

    Source: the published evaluators.

    >>> choice_question("Which?", {"A": "cat", "B": "dog"}, "Letter, please.")
    'Which?\nA. cat\nB. dog\nLetter, please.'
    """
    lines = [f"{letter}. {text}" for letter, text in options.items()]
    return "\n".join([*([hint] if hint else []), question, *lines, suffix])


def load_scienceqa(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load `scienceqa_test_img.jsonl`: `image`, `question`, `hint`, `choices`, `answer`, an index; ids are lines."""
    path, items = folder / benchmark.options["questions"], Items()
    for line, record in iter_jsonl(path):
        where = f"{path}:{line}"
        choices, answer = get(record, "choices", list, where), get(record, "answer", int, where)
        if not (0 <= answer < len(choices) <= len(LETTERS)):
            raise DataError(f"{where}: answer {answer} of {len(choices)} choices", expected="one of at most five")
        options = dict(zip(LETTERS, choices, strict=False))
        asked = get(record, "question", str, where)
        prompt = choice_question(asked, options, benchmark.prompt["suffix"], record.get("hint") or "")
        image = inside(folder, get(record, "image", str, where), where)
        meta = {"cluster": image.relative_to(folder.absolute()).as_posix(), "options": options}
        item = Item(str(line), user(prompt, [image], where), LETTERS[answer], benchmark.options["split"], meta)
        items.add(item, where=where, images=[image])
    return items.finish(benchmark, folder)


def load_seed(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load `seed.jsonl` (`image`, `text`, `question_id`), with answers and types from `SEED-Bench.json` by id.

    `text` is the whole prompt. Groups are the nine types about images; lines of the video types, which the reported
    number leaves out, are skipped. Source: the published evaluators and their calculation script.
    """
    path, official = folder / benchmark.options["questions"], folder / benchmark.options["annotation"]
    types, items, known = benchmark.options["types"], Items(), {}
    for row, entry in enumerate(get(read_json(official, fix=FETCH), "questions", list, str(official))):
        at = f"{official}:{row}"
        known[str(get(entry, "question_id", (int, str), at))] = get(entry, "question_type_id", int, at), entry
    for line, record in iter_jsonl(path):
        where = f"{path}:{line}"
        number = str(get(record, "question_id", (int, str), where))
        if number not in known:
            raise DataError(f"{where}: question id {number!r} is not in {official}", fix="fetch both files again")
        kind, entry = known[number]
        if kind > len(types):
            continue
        gold = get(entry, "answer", str, f"{official}: question {number}")
        if gold not in tuple("ABCD"):
            raise DataError(f"{official}: question {number}: answer {gold!r}", expected="A, B, C or D")
        image = inside(folder, get(record, "image", str, where), where)
        prompt = get(record, "text", str, where) + benchmark.prompt["suffix"]
        item = Item(number, user(prompt, [image], where), gold, types[kind - 1], {"cluster": image.name})
        items.add(item, where=where, images=[image])
    return items.finish(benchmark, folder)


def load_mmbench(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load a TSV with base64 images; rows with the same index modulo 1,000,000 are one circular set (`meta["set"]`).

    The image of a rotated copy may be the index of another row, as VLMEvalKit writes it. Other cells than options are
    read by pandas as published, where `None` and `NA` are empty. An option with such a text is an option;
    `meta["published_without"]` lists the letters that the published loader drops. `meta["row"]` holds the columns of
    the submission file. Source: the published evaluator.
    """
    import pandas as pd

    path, items, scored = folder / benchmark.options["file"], Items(), not benchmark.server_scored
    if not path.is_file():
        raise DataError(f"no such file: {path}", fix=f"`vlm download {benchmark.name}` fetches the benchmark")
    try:
        table = pd.read_csv(path, sep="\t", dtype=str)
        raw = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, usecols=lambda name: name in LETTERS)
    except ValueError as error:  # pandas' parser errors, and text that is not UTF-8
        raise DataError(f"{path}: not a table: {error}", fix="fetch the file again") from error
    sizes: Counter[str] = Counter()
    pictures = dict(zip(table["index"], table["image"], strict=True)) if {"index", "image"} <= {*table.columns} else {}
    texts = raw.to_dict(orient="records") or [{}] * len(table)
    for row, (cells, options_of) in enumerate(zip(table.to_dict(orient="records"), texts, strict=True), 2):
        where = f"{path}:{row}"
        record: dict[str, Any] = {str(k): v for k, v in cells.items() if not (isinstance(v, float) and math.isnan(v))}
        index = get(record, "index", str, where)
        picture = _picture(get(record, "image", str, where), pictures, where)
        try:
            number, data = int(index), base64.b64decode(picture, validate=True)
        except ValueError as error:
            raise DataError(
                f"{where}: index {index!r:.20} or image is malformed: {error}", fix="fetch it again"
            ) from error
        gold = get(record, "answer", str, where) if scored else None
        if gold is not None and gold not in tuple(LETTERS):
            raise DataError(f"{where}: answer {gold!r}", expected=f"one of {', '.join(LETTERS)}")
        options = {letter: str(options_of[letter]) for letter in LETTERS if options_of.get(letter)}
        dropped = [letter for letter in options if letter not in record]
        asked = get(record, "question", str, where)
        prompt = choice_question(asked, options, benchmark.prompt["suffix"], record.get("hint", ""))
        image = picture_file(folder, data, where)
        kept = {name: record.get(name) for name in table.columns if name not in benchmark.options["dropped"]}
        circular = str(number % ROTATION)
        sizes[circular] += 1
        meta: dict[str, Any] = {"cluster": circular, "set": circular, "options": options, "row": kept}
        meta |= {"published_without": dropped} if dropped else {}
        item = Item(index, user(prompt, [image], where), gold, benchmark.options["split"], meta)
        items.add(item, where=where, images=[image], needs_answer=scored)
    for item in items.items:
        item.meta["set_size"] = sizes[item.meta["set"]]
    return items.finish(benchmark, folder)


def _picture(cell: str, pictures: Mapping[Any, Any], where: str) -> str:
    """Return the base64 text of an image cell; one that holds the index of another row is followed to that row.

    Raises:
        DataError: No row with a picture has that index.
    """
    seen: list[str] = []
    while re.fullmatch(r"\d{1,12}", cell):
        seen.append(cell)
        other = pictures.get(cell)
        if not isinstance(other, str) or other in seen:
            raise DataError(
                f"{where}: the image is the index {cell}, and no row of that index has a picture",
                expected="base64, or the index of a row with a picture",
                fix="add that row, or put the picture into this one; fetching the file again does not help",
            )
        cell = other
    return cell


LOADERS = {"mmbench": load_mmbench, "scienceqa": load_scienceqa, "seed": load_seed}
