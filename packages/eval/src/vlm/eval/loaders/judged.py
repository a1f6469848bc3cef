"""Open questions whose replies a judge grades (MM-Vet) or reads (MathVista)."""

from pathlib import Path

from vlm.core.errors import DataError
from vlm.core.home import read_json
from vlm.core.sample.records import iter_jsonl
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.common import FETCH, CountTokens, Item, Items, get, inside, user


def load_mmvet(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load `llava-mm-vet.jsonl` (question_id, image, text), `images/`, and the rest from `mm-vet.json` by id `v1_N`.

    Source: the published evaluators.

    Raises:
        DataError: Also for a question whose text or image differs between the two files.
    """
    path, official, items = folder / "llava-mm-vet.jsonl", folder / "mm-vet.json", Items()
    answers = read_json(official, fix=FETCH)
    for line, record in iter_jsonl(path):
        where = f"{path}:{line}"
        number = f"v1_{get(record, 'question_id', (int, str), where)}".replace("v1_v1_", "v1_")
        entry, name = get(answers, number, dict, str(official)), get(record, "image", str, where)
        asked, at = get(record, "text", str, where), f"{official}: {number}"
        if get(entry, "question", str, at).strip() != asked.strip() or get(entry, "imagename", str, at) != name:
            raise DataError(f"{where} and {at} are not the same question", fix="fetch both files again")
        image = inside(folder / "images", name, where)
        capabilities = sorted(get(entry, "capability", list, at))
        meta = {"cluster": name, "question": asked, "capability": capabilities}
        prompt, gold = asked + benchmark.prompt["join"], get(entry, "answer", str, at)
        items.add(Item(number, user(prompt, [image], where), gold, "all", meta), where=where, images=[image])
    return items.finish(benchmark, folder)


def load_mathvista(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load `annot_testmini.json` (pid -> query, image, choices, precision, answer, types), images in `images/`.

    Source: the published evaluators.
    """
    path, items = folder / "annot_testmini.json", Items()
    content = read_json(path, fix=FETCH)
    if not isinstance(content, dict):
        raise DataError(f"{path}: not an object", expected="pid -> question")
    for pid, record in content.items():
        where = f"{path}: {pid}"
        image = inside(folder, get(record, "image", str, where), where)
        kind, form = get(record, "question_type", str, where), get(record, "answer_type", str, where)
        choices = get(record, "choices", (list, type(None)), where)
        if kind == "multi_choice" and not choices:
            raise DataError(f"{where}: a question to choose from without choices", fix="fetch the file again")
        meta = {"cluster": image.name, "choices": choices, "question_type": kind, "answer_type": form}
        meta["precision"] = get(record, "precision", (int, float, type(None)), where)
        question, gold = get(record, "query", str, where), get(record, "answer", str, where)
        item = Item(pid, user(question, [image], where), gold, "testmini", meta)
        items.add(item, where=where, images=[image])
    return items.finish(benchmark, folder)


LOADERS = {"mathvista": load_mathvista, "mmvet": load_mmvet}
