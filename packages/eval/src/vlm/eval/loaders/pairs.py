"""Rows that count in pairs: MME (two questions about an image) and MMVP (two images, one question)."""

import csv
from io import StringIO
from itertools import groupby
from pathlib import Path

from vlm.core.errors import DataError
from vlm.core.home import split_lines
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.choice import choice_question
from vlm.eval.loaders.common import FETCH, CountTokens, Item, Items, inside, user


def load_mme(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load `Your_Results/<task>.txt` (image, question, Yes or No), images in `MME_Benchmark_release_version/<task>/`.

    Images may also be in `images/` there. The group is the task, the set the image. Source: the published evaluators.

    Raises:
        DataError: Also when an image has another number of consecutive lines than two.
    """
    items = Items()
    for task in benchmark.counts.groups if benchmark.counts else []:
        path, pictures = folder / "Your_Results" / f"{task}.txt", folder / "MME_Benchmark_release_version" / task
        rows = [line.split("\t") for line in split_lines(_text(path))]
        for line, row in enumerate(rows, 1):
            if len(row) != 3 or row[2] not in ("Yes", "No"):
                raise DataError(f"{path}:{line}: {row!r:.80}", expected="image, question, Yes or No, with tabs between")
        for name, lines in groupby(rows, key=lambda row: row[0]):
            if (n := len(list(lines))) != 2:
                raise DataError(f"{path}: {n} consecutive lines for {name}", expected="two for each image")
        for line, (name, question, gold) in enumerate(rows, 1):
            where = f"{path}:{line}"
            image = inside(pictures, name, where)
            image = image if image.is_file() else inside(pictures / "images", name, where)
            prompt = question + benchmark.prompt["join"] + benchmark.prompt["suffix"]
            meta = {"cluster": f"{task}/{name}", "set": name}
            item = Item(f"{task}/{line}", user(prompt, [image], where), gold.lower(), task, meta)
            items.add(item, where=where, images=[image])
    return items.finish(benchmark, folder)


def load_mmvp(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load `Questions.csv` (lndex or Index, Question, Options, Correct Answer), images in `MMVP Images/<index>.jpg`.

    Options are like `(a) x (b) y`. Consecutive rows are a pair, as published. Source: the published evaluators.
    """
    path, items = folder / "Questions.csv", Items()
    for row, record in enumerate(csv.DictReader(StringIO(_text(path)))):
        where = f"{path}:{row + 2}"
        try:
            number = (record.get("lndex") or record["Index"]).strip()
            question, listed, answer = (record[key].strip() for key in ("Question", "Options", "Correct Answer"))
        except (KeyError, AttributeError) as error:
            raise DataError(
                f"{where}: no {error}", expected="lndex (or Index), Question, Options, Correct Answer"
            ) from error
        first, mark, second = listed.removeprefix("(a)").partition("(b)")
        if not mark or answer not in ("(a)", "(b)"):
            raise DataError(f"{where}: {listed!r:.60}, answer {answer!r:.20}", expected="(a) x (b) y, and (a) or (b)")
        options = {"A": first.strip(), "B": second.strip()}
        image = inside(folder / "MMVP Images", f"{number}.jpg", where)
        pair = str(row // 2)
        meta = {"cluster": pair, "set": pair, "options": options}
        prompt = choice_question(question, options, benchmark.prompt["suffix"])
        items.add(
            Item(number, user(prompt, [image], where), answer[1].upper(), "all", meta), where=where, images=[image]
        )
    return items.finish(benchmark, folder)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"no such file: {path}", fix=FETCH) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error}", fix="fetch the file again") from error


LOADERS = {"mme": load_mme, "mmvp": load_mmvp}
