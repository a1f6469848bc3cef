"""MMLongBench: five groups of tasks at five lengths, JSON lines below `mmlb_data/` and pictures below `mmlb_image/`.

A set of a table names its file and its form. A form turns a record into what is asked (`FORMS`).
"""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from vlm.core.errors import DataError
from vlm.core.home import read_json
from vlm.core.sample.records import iter_jsonl
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.common import FETCH, CountTokens, Item, Items, get, inside, user

SEED = 42
"""Seed of the published runs."""

GUESSES = (0, 1, 1, 0)
"""What replies without yes (1) or no (0) count as, in turn over the items of a file."""

FORMATS = ("Integer", "Float", "String", "None", "List")
"""Kinds of answers about documents."""

Prompt = dict[str, str]
Row = tuple[str, dict[str, Any]]
"""Where a record stands, and the record."""


class Asked(NamedTuple):
    """What one record asks: context and question for the prompt, pictures in order, the answer, and more for scores."""

    context: str
    question: str
    images: list[str]
    gold: Any
    meta: dict[str, Any] | None = None


def load_mmlongbench(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load the sets of one task group at one length; the group of an item is its set.

    As published, some questions of each file are drawn with a fixed seed, and each is asked at all of its depths.
    Source: EdinburghNLP/MMLongBench, data.py.

    Raises:
        DataError: Also for a set whose key points or pictures do not belong to its records.
    """
    items = Items()
    length = benchmark.name.rsplit("-", 1)[1].removesuffix("k")
    for name, about in benchmark.options["sets"].items():
        path = folder / "mmlb_data" / about["file"].format(length=length)
        claims = _claims(folder / "mmlb_data" / about["claims"]) if "claims" in about else None
        form, sample = about["form"], about.get("sample", benchmark.options["sample"])
        for number, (where, record) in enumerate(READERS.get(form, _drawn)(path, form, sample)):
            asked = FORMS[form](record, benchmark.prompt, where)
            meta = {"cluster": f"{name}/{_id(record, number)}"} | (asked.meta or {})
            if form == "haystack":
                meta["guess"] = GUESSES[number % len(GUESSES)]
            if claims is not None:
                meta["claims"] = get(claims, _id(record, number), list, f"{path.parent / about['claims']}: claims")
            images = [inside(folder, f"mmlb_image/{image}", where) for image in _names(asked.images, where)]
            prompt = benchmark.prompt[form].format(context=asked.context, question=asked.question)
            place = where.removeprefix(f"{path}:").strip()  # ids come again at other depths
            item_id = "/".join(dict.fromkeys([name, _id(record, number), place]))
            item = Item(item_id, user(prompt, images, where), asked.gold, name, meta)
            items.add(item, where=where, images=images, needs_image=form not in ("interleaved", "counting"))
    return items.finish(benchmark, folder)


def _id(record: dict[str, Any], number: int) -> str:
    return str(record.get("id", number))


def _claims(path: Path) -> dict[str, list[str]]:
    """Read the key points of the expert's summaries, by the id of the document."""
    return {str(get(row, "id", (int, str), f"{path}:{n}")): _texts(row, "claims", f"{path}:{n}")
            for n, row in iter_jsonl(path)}  # fmt: skip


def _texts(record: Any, key: str, where: str) -> list[str]:
    return _names(get(record, key, list, where), where)


def _names(values: Sequence[Any], where: str) -> list[str]:
    for value in values:
        if not isinstance(value, str):
            raise DataError(f"{where}: {value!r:.60}", expected="a text")
    return list(values)


# which records, and in which order -----------------------------------------------------------------------------------


def _drawn(path: Path, form: str, sample: int) -> Iterator[Row]:
    """Yield the records of `sample` ids, in the order of the file."""
    rows = [(f"{path}:{line}", record) for line, record in iter_jsonl(path)]
    if form == "entity":  # as published: such names were not to be had on a network disk
        rows = [row for row in rows if '"' not in get(row[1], "image", str, row[0])]
    ids = sorted({str(get(record, "id", (int, str), where)) for where, record in rows}, key=_by_kind(rows))
    kept = set(random.Random(SEED).sample(ids, min(sample, len(ids))))
    yield from (row for row in rows if str(row[1]["id"]) in kept)


def _by_kind(rows: Sequence[Row]) -> Callable[[str], Any]:
    """Return the key by which ids are sorted: numbers as numbers, texts as texts."""
    return int if all(isinstance(record["id"], int) for _, record in rows) else str


def _permuted(path: Path, form: str, sample: int) -> Iterator[Row]:
    """Yield `sample` records in a random order, that of `datasets.Dataset.shuffle`."""
    rows = [(f"{path}:{line}", record) for line, record in iter_jsonl(path)]
    yield from (rows[i] for i in np.random.default_rng(SEED).permutation(len(rows))[:sample])


def _examples(path: Path, form: str, sample: int) -> Iterator[Row]:
    """Yield `sample` test pictures with the examples of their domain, `{"examples": …, "image": …, "answer": …}`.

    A domain has several lists of examples in rounds. One list is chosen, and each of its rounds is shuffled.
    """
    content = read_json(path, fix=FETCH)
    if not isinstance(content, dict):
        raise DataError(f"{path}: not an object", expected="domain -> exemplar_list, test_example", fix=FETCH)
    tests = [(domain, n, test) for domain, part in content.items()
             for n, test in enumerate(get(part, "test_example", list, f"{path}: {domain}"))]  # fmt: skip
    random.Random(SEED).shuffle(tests)
    for domain, n, test in tests[:sample]:
        where = f"{path}: {domain}/{n}"
        choices = get(content[domain], "exemplar_list", list, where)
        rng = random.Random(f"{SEED}/{path.name}/{domain}/{n}")
        rounds = rng.choice(choices) if choices else None
        if not isinstance(rounds, list) or not all(isinstance(one, list) for one in rounds):
            raise DataError(f"{where}: no list of examples", expected="lists of rounds of examples", fix=FETCH)
        shown = [example for one in rounds for example in rng.sample(one, len(one))]
        yield where, {"id": f"{domain}/{n}", "examples": shown, **test}


READERS: dict[str, Callable[[Path, str, int], Iterator[Row]]] = {
    "case": _permuted,
    "document": _permuted,
    "examples": _examples,
    "report": _permuted,
}
"""Form -> function(file, form, number) -> records to ask; all others: `_drawn`."""


# what a record asks --------------------------------------------------------------------------------------------------


def _entity(record: Any, prompt: Prompt, where: str) -> Asked:
    """`ctxs` (title, text), a picture, a question about what it shows; any of several answers is right."""
    passages = [
        f"Document (Title: {get(passage, 'title', str, where)}): {get(passage, 'text', str, where)}"
        for passage in get(record, "ctxs", list, where)
    ]
    question = "<image>" + get(record, "question", str, where)
    return Asked("\n\n".join(passages), question, [get(record, "image", str, where)], _answers(record, where))


def _answers(record: Any, where: str) -> list[str]:
    """Return the accepted answers: a text, texts, or lists of texts."""
    given = get(record, "answer", (str, list), where)
    flat = [given] if isinstance(given, str) else given
    return _names([text for one in flat for text in (one if isinstance(one, list) else [one])], where)


def _haystack(record: Any, prompt: Prompt, where: str) -> Asked:
    """`ctxs` are pictures and nothing else; the answer is yes or no."""
    images = _texts(record, "ctxs", where)
    gold = get(record, "answer", str, where)
    if gold.strip(" .").lower() not in ("yes", "no"):
        raise DataError(f"{where}: answer {gold!r:.60}", expected="Yes or No")
    return Asked("\n".join(["<image>"] * len(images)), get(record, "question", str, where), images, gold)


def _paragraphs(record: Any, where: str) -> str:
    return "\n\n".join(get(part, "text", str, where) for part in get(record, "ctxs", list, where))


def _interleaved(record: Any, prompt: Prompt, where: str) -> Asked:
    """`ctxs` are paragraphs with `<image>` marks for `image_list`; the answer is a text, or a list of counts."""
    answer = get(record, "answer", (str, list), where)
    counts = isinstance(answer, list) and all(isinstance(count, int) for count in answer)
    gold = answer if counts else _answers(record, where)
    question = get(record, "question", str, where)
    return Asked(_paragraphs(record, where), question, _texts(record, "image_list", where), gold)


def _counting(record: Any, prompt: Prompt, where: str) -> Asked:
    """As `_interleaved`; the question shows `needle_image_list`, the answer is a list of counts."""
    gold = get(record, "answer", list, where)
    if not all(isinstance(count, int) for count in gold):
        raise DataError(f"{where}: answer {gold!r:.60}", expected="a list of whole numbers")
    images = _texts(record, "image_list", where) + _texts(record, "needle_image_list", where)
    return Asked(_paragraphs(record, where), get(record, "question", str, where), images, gold)


def _choice(record: Any, prompt: Prompt, where: str) -> Asked:
    """As `_interleaved`; `choices_image` are pictures to choose from, the answer is the index of one."""
    options, gold = _texts(record, "choices_image", where), get(record, "answer", int, where)
    if not 0 <= gold < len(options):
        raise DataError(f"{where}: answer {gold} of {len(options)} options", expected="an index")
    question = get(record, "question", str, where)
    question += "".join(f"\n{chr(65 + i)}. <image>" for i in range(len(options)))
    images = _texts(record, "image_list", where) + options
    return Asked(_paragraphs(record, where), question, images, gold, {"n_choices": len(options)})


def _labels(record: Any, prompt: Prompt, where: str) -> Asked:
    """Examples with their numbers, then a picture whose number is asked."""
    shown = record["examples"]
    labels = [prompt["example"].format(label=get(one, "id", (int, str), where)) for one in shown]
    images = [get(one, "image", str, where) for one in [*shown, record]]
    return Asked("\n\n".join(labels), "<image>", images, get(record, "answer", int, where))


def _pages(record: Any, key: str, prompt: Prompt, where: str, *, numbered: bool) -> tuple[str, list[str]]:
    """Return the line of each page, and the pages: pictures `…/DOCUMENT/NAME`, with numbers `…/DOCUMENT/…pageN.…`."""
    images, lines = _texts(record, key, where), []
    for image in images:
        folders, pieces = PurePosixPath(image).parts[:-1], image.split("page")
        if not folders or (numbered and len(pieces) < 2):
            raise DataError(f"{where}: page {image!r:.60}", expected=f"DOCUMENT/NAME{'_pageN' * numbered}.png")
        page = pieces[1].split(".")[0] if numbered else ""
        lines.append(prompt["page"].format(document=image.split("/")[-2], page=page))
    return "\n\n".join(lines), images


def _document(record: Any, prompt: Prompt, where: str) -> Asked:
    """Pages of a document among those of others, and a question about it whose answer has one of `FORMATS`."""
    context, images = _pages(record, "page_list", prompt, where, numbered=False)
    document, question = get(record, "doc_name", str, where), get(record, "question", str, where)
    kind, gold = get(record, "answer_format", str, where), str(get(record, "answer", (str, int, float), where))
    if kind not in FORMATS:
        raise DataError(f"{where}: answer_format {kind!r:.60}", expected=", ".join(FORMATS))
    asked = prompt["asked"].format(document=document, question=question)
    return Asked(context, asked, images, gold, {"answer_format": kind})


def _report(record: Any, prompt: Prompt, where: str) -> Asked:
    """Pages of a report; the expert's summary has titled sections."""
    context, images = _pages(record, "image_list", prompt, where, numbered=True)
    sections = [
        f"{get(part, 'section_title', str, where)}:\n" + "\n".join(_texts(part, "paragraphs", where))
        for part in get(record, "summary", list, where)
    ]
    return Asked(context, "", images, "\n\n".join(sections))


def _case(record: Any, prompt: Prompt, where: str) -> Asked:
    """Pages of the documents of a lawsuit, and the expert's summary."""
    context, images = _pages(record, "image_list", prompt, where, numbered=True)
    return Asked(context, "", images, get(record, "summary", str, where))


FORMS: dict[str, Callable[[Any, Prompt, str], Asked]] = {
    "case": _case,
    "choice": _choice,
    "counting": _counting,
    "document": _document,
    "entity": _entity,
    "examples": _labels,
    "haystack": _haystack,
    "interleaved": _interleaved,
    "report": _report,
}
"""Form of a set, also the name of its prompt -> function(record, prompt pieces, place) -> what is asked."""

LOADERS = {"mmlongbench": load_mmlongbench}
