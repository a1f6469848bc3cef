"""Files as lmms-eval 0.7 and VLMEvalKit write them: their instructions, their order, their empty cells."""

import json
from pathlib import Path
from typing import Any

import pytest

from support import prediction_files as files
from vlm.core.errors import DataError
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import Item, load_items
from vlm.eval.mini import make_mini
from vlm.eval.saved.score import score_predictions

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def asked_by_us(item: Item) -> str:
    """The question without the sentences of our table."""
    text = files.question_of(item)
    for sentence in (SHORT, LETTER, "Please answer yes or no."):
        text = text.replace(sentence, "")
    return text.strip()


def chartqa(item: Item) -> dict[str, Any]:
    return {"input": f"{asked_by_us(item)}\nAnswer the question with a single word.", "relaxed_overall": 1.0}


def mme(item: Item) -> dict[str, Any]:
    about = {"question_id": item.meta["cluster"], "category": item.group, "score": 1.0}
    return {"input": f"{asked_by_us(item)}\n{SHORT}", "mme_percetion_score": about}


def mmbench(item: Item) -> dict[str, Any]:
    row = item.meta["row"]
    stem, *options = asked_by_us(item).split("\nA. ")
    given = f"{stem.replace(chr(10), ' ')} There are several options:\nA. {options[0]}\n{LETTER}"
    about = {"index": int(item.id), "question": row["question"], "answer": item.gold, "prediction": "x", "split": "dev"}
    return {"input": given, "gpt_eval_score": about, "submission": about}


def written(path: Path, items: list[Item], known: Any, replies: list[str]) -> Path:
    """Samples without `doc`, as their tracker writes them: `target` is text, `input` the whole prompt."""
    return files.jsonl(
        path,
        [
            {"doc_id": i, "target": str(item.gold).title(), "filtered_resps": [reply], **known(item)}
            for i, (item, reply) in enumerate(zip(items, replies, strict=True))
        ],
    )


HARNESS = {"ChartQA": chartqa, "MME": mme, "MMBench-dev-en": mmbench}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("mini")

    def get(name: str) -> Any:
        table = load_benchmark(name)
        folder = make_mini(name, root / table.name)
        return table, load_items(table, folder), folder

    return get


@pytest.mark.parametrize(
    ("name", "order"), [("ChartQA", "ours"), *((n, o) for n in ("MME", "MMBench-dev-en") for o in ("ours", "theirs"))]
)
def test_each_reply_of_lmms_eval_reaches_its_item(name: str, order: str, data: Any, tmp_path: Path) -> None:
    benchmark, items, folder = data(name)
    replies = {item.id: files.reply(i) for i, item in enumerate(items)}
    moved = items if order == "ours" else [*items[3:], *items[:3]]
    path = written(tmp_path / "a_samples_x.jsonl", moved, HARNESS[name], [replies[item.id] for item in moved])
    summary = score_predictions(benchmark, [path], tmp_path / "out", data=folder, name="theirs")
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert {row["id"]: row["completion"] for row in rows} == replies
    assert summary["outcomes"] == {"ok": len(items)}


@pytest.mark.parametrize("name", HARNESS)
def test_other_questions_are_refused_all_the_same(name: str, data: Any, tmp_path: Path) -> None:
    benchmark, items, folder = data(name)

    def other(item: Item) -> dict[str, Any]:
        known = HARNESS[name](item)
        text = f"How tall is number {item.id}?\n{SHORT}"
        nested = {
            k: {**v, "question": text, "question_id": "x"} if isinstance(v, dict) else v for k, v in known.items()
        }
        return {**nested, "input": text}

    path = written(tmp_path / "a.jsonl", items, other, ["yes"] * len(items))
    with pytest.raises(DataError, match="cannot be matched"):
        score_predictions(benchmark, [path], tmp_path / "out", data=folder, name="x")


def test_questions_alone_are_no_match_when_several_items_ask_them(data: Any, tmp_path: Path) -> None:
    benchmark, items, folder = data("POPE")
    rows = [{"doc_id": "x", "input": files.question_of(item), "filtered_resps": ["yes"]} for item in items[::-1]]
    with pytest.raises(DataError, match="cannot be matched"):
        score_predictions(benchmark, [files.jsonl(tmp_path / "a.jsonl", rows)], tmp_path / "o", data=folder, name="x")


@pytest.mark.parametrize("ending", ["xlsx", "tsv"])
def test_an_empty_cell_of_vlmevalkit_is_an_empty_answer_and_wrong(ending: str, data: Any, tmp_path: Path) -> None:
    benchmark, items, folder = data("MMBench-dev-en")
    sets = list(dict.fromkeys(item.meta["set"] for item in items))
    empty = {item.id for item in items if item.meta["set"] == sets[0]}
    rows = [
        {**item.meta["row"], "index": int(item.id), "prediction": "" if item.id in empty else item.gold}
        for item in items
    ]
    path = files.table(tmp_path / f"a.{ending}", rows)
    summary = score_predictions(benchmark, [path], tmp_path / "out", data=folder, name="theirs")
    assert summary["metrics"][0]["value"] == pytest.approx(100 * (len(sets) - 1) / len(sets))
    assert summary["outcomes"] == {"ok": len(items)}
    assert summary["imported"]["problems"]["empty"]["n"] == len(empty)
