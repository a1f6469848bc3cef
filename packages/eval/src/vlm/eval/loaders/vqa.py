"""Open questions in JSON lines: DocVQA, InfoVQA, TextVQA, VizWiz, GQA, AI2D.

A line has `image`, `question`, `question_id`, and `answer`, one text or a list of references.
Where the published evaluator scores against an official annotation file, the table names it: `options["annotation"]`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError
from vlm.core.home import read_json
from vlm.core.sample.records import iter_jsonl
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.common import FETCH, CountTokens, Item, Items, get, inside, user

Reference = tuple[Any, Any, dict[str, Any]]
"""Question id, answer(s), and what the aggregate uses."""


def _rrc(content: Any, where: str) -> Iterator[Reference]:
    """Read the format of the Robust Reading Competition (DocVQA, InfoVQA): `data`, with `questionId` and `answers`."""
    for row, entry in enumerate(get(content, "data", list, where)):
        at = f"{where}:{row}"
        yield get(entry, "questionId", (int, str), at), get(entry, "answers", list, at), {}


def _vqa(content: Any, where: str) -> Iterator[Reference]:
    """Read the format of VQA (TextVQA, VizWiz): `annotations`, with `question_id` and ten `answers`."""
    for row, entry in enumerate(get(content, "annotations", list, where)):
        at = f"{where}:{row}"
        answers = [get(answer, "answer", str, at) for answer in get(entry, "answers", list, at)]
        yield get(entry, "question_id", (int, str), at), answers, {}


def _gqa(content: Any, where: str) -> Iterator[Reference]:
    """Read the format of GQA: question id -> `answer` and `types`; `structural` divides binary from open questions."""
    if not isinstance(content, dict):
        raise DataError(f"{where}: not an object", expected="question id -> question")
    for name, entry in content.items():
        at = f"{where}:{name}"
        structural = get(get(entry, "types", dict, at), "structural", str, at)
        yield name, get(entry, "answer", str, at), {"structural": structural}


FORMATS: dict[str, Callable[[Any, str], Iterator[Reference]]] = {"rrc": _rrc, "vqa": _vqa, "gqa": _gqa}
"""Format of an annotation file -> function(content, where) -> references."""


def references(benchmark: Benchmark, folder: Path) -> dict[str, Reference] | None:
    """Return question id (as text) -> reference from the annotation file; None when the table names none."""
    if "annotation" not in benchmark.options:
        return None
    path = folder / benchmark.options["annotation"]["file"]
    found: dict[str, Reference] = {}
    for reference in FORMATS[benchmark.options["annotation"]["format"]](read_json(path, fix=FETCH), str(path)):
        if str(reference[0]) in found:
            raise DataError(f"{path}: question id {reference[0]!r} occurs twice", expected="one entry per question")
        found[str(reference[0])] = reference
    return found


def load_vqa(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load `options["questions"]` (JSON lines), with answers from the annotation file, else from the lines.

    Sets that a server scores have no answers. Source: the published evaluators.

    Raises:
        DataError: Also when questions and annotations have different ids.
    """
    path, items, known = folder / benchmark.options["questions"], Items(), references(benchmark, folder)
    group, scored, asked = benchmark.options["split"], not benchmark.server_scored, set()
    for line, record in iter_jsonl(path):
        where = f"{path}:{line}"
        name = get(record, "image", str, where)
        image, number = inside(folder, name, where), get(record, "question_id", (int, str), where)
        gold = get(record, "answer", (str, list), where) if scored and known is None else None
        about: dict[str, Any] = {}
        if known is not None:
            if str(number) not in known:
                raise DataError(f"{where}: question id {number!r} is not in the annotations", fix="fetch both again")
            number, gold, about = known[str(number)]
        asked.add(str(number))
        question = get(record, "question", str, where) + benchmark.prompt["join"] + benchmark.prompt["suffix"]
        meta = {"cluster": image.name, "question_id": number, **about}
        item_id = str(line if benchmark.options.get("ids") == "line" else number)
        item = Item(item_id, user(question, [image], where), gold, group, meta)
        items.add(item, where=where, images=[image], needs_answer=scored)
    if known is not None and len(asked) < len(known):
        raise DataError(
            f"short download: {path} asks {len(asked)} of the {len(known)} questions in the annotations",
            expected="the same questions in both files",
            fix="fetch both files again",
        )
    return items.finish(benchmark, folder)


LOADERS = {"vqa": load_vqa}
