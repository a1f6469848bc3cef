"""Helpers of the tests of benchmarks: miniatures, prompts, rows as the runner writes them, cells of an XLSX file."""

import hashlib
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vlm.eval.benchmark import Benchmark, load_benchmark
from vlm.eval.loaders import Item, load_items
from vlm.eval.mini import make_mini
from vlm.eval.run.score import Metric, aggregate, score_item

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def mini(
    name: str, folder: Path, n: int | None = None, seed: int = 1, family: str = ""
) -> tuple[Benchmark, list[Item]]:
    """Return the table of a benchmark as a family is asked, and the items of its miniature in `folder`."""
    table = load_benchmark(name).for_family(family)
    return table, load_items(table, make_mini(name, folder, seed=seed, n=n))


def text_of(item: Item) -> str:
    """Return the user's text, with `<image>` for images."""
    return "".join(p["text"] if p["type"] == "text" else "<image>" for p in item.messages[0]["content"])


def images_of(item: Item) -> list[Path]:
    return [Path(p["path"]) for p in item.messages[0]["content"] if p["type"] == "image"]


def right(item: Item) -> str:
    """Return a right reply."""
    return item.gold if isinstance(item.gold, str) else item.gold[0]


def rows_of(table: Benchmark, items: list[Item], replies: list[str | None]) -> list[dict[str, Any]]:
    """Return rows of results.jsonl; for a reply None the model ran out of memory."""
    rows = []
    for item, reply in zip(items, replies, strict=True):
        score, strict = (score_item(table, item, reply, compat) for compat in ("upstream", "fixed"))
        row = {"id": item.id, "group": item.group, "outcome": "oom" if reply is None else "ok", "completion": reply}
        row |= {"score": score.value, "strict_score": strict.value, "gold": item.gold, "meta": item.meta}
        rows.append(row)
    return rows


def metrics(table: Benchmark, items: list[Item], replies: list[str | None], compat: Any = "upstream") -> list[Metric]:
    return aggregate(table, rows_of(table, items, replies), compat)


def perfect_wrong_and_empty_replies(name: str, folder: Path) -> None:
    """Check a miniature end to end: 100 for right replies, 0 for wrong and empty ones, nothing for lost ones."""
    table, items = mini(name, folder)
    perfect = metrics(table, items, [right(item) for item in items])
    assert perfect[0].value == 100 and perfect[0].n_scored == len(items) and perfect[0].low < 100
    for reply in ("xylophone", ""):
        for compat in ("upstream", "fixed"):
            assert metrics(table, items, [reply] * len(items), compat)[0].value == 0
    lost = metrics(table, items, [None] * len(items))
    assert lost[0].value is None and (lost[0].n_scored, lost[0].n_total) == (0, len(items))


def digest(folder: Path) -> str:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return hashlib.sha256(b"".join(str(p.relative_to(folder)).encode() + p.read_bytes() for p in files)).hexdigest()


def cells(path: Path) -> list[list[str | float | None]]:
    """Read the rows of the first sheet of an XLSX file."""
    space = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    with zipfile.ZipFile(path) as archive:
        strings = ElementTree.fromstring(archive.read("xl/sharedStrings.xml"))
        sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    texts = ["".join(t.text or "" for t in entry.iter(f"{space}t")) for entry in strings.iter(f"{space}si")]
    rows: list[list[str | float | None]] = []
    for line in sheet.iter(f"{space}row"):
        row: dict[int, str | float] = {}
        for cell in line.iter(f"{space}c"):
            value = cell.find(f"{space}v")
            assert value is not None and value.text is not None
            number = float(value.text)
            row[ord(cell.attrib["r"][0]) - ord("A")] = texts[int(number)] if cell.get("t") == "s" else number
        rows.append([row.get(i) for i in range(max(row) + 1)])
    return rows
