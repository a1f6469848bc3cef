"""Predictions as the published scripts and the harnesses write them: one function a format, from the items."""

import json
from pathlib import Path
from typing import Any

from vlm.eval.backends.judge import question_of
from vlm.eval.loaders import Item

Items = list[Item]


def reply(i: int) -> str:
    """Another text for each item: an answer that lands on a wrong item is seen."""
    return f"no, reply {i}"


def jsonl(path: Path, records: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def listed(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def grouped(items: Items) -> dict[str, list[tuple[int, Item]]]:
    groups: dict[str, list[tuple[int, Item]]] = {}
    for i, item in enumerate(items):
        groups.setdefault(item.group, []).append((i, item))
    return groups


def tail(item: Item) -> str:
    return item.id.split("/", 1)[-1]


def table(path: Path, records: list[dict[str, Any]]) -> Path:
    import pandas as pd

    if path.suffix == ".xlsx":
        pd.DataFrame(records).to_excel(path, index=False)
    else:
        pd.DataFrame(records).to_csv(path, sep="\t", index=False)
    return path


def pope(out: Path, items: Items) -> list[Path]:
    answers = [{"question_id": int(item.id), "text": reply(i), "metadata": {}} for i, item in enumerate(items)]
    return [listed(out / "pope.json", answers)]


def docvqa(out: Path, items: Items) -> list[Path]:
    rows = [
        {
            "question": question_of(item),
            "questionId": item.meta["question_id"],
            "answer": reply(i),
            "annotation": item.gold,
        }
        for i, item in enumerate(items)
    ]
    return [listed(out / "docvqa_val.json", rows[::-1])]


def textvqa(out: Path, items: Items) -> list[Path]:
    rows = [{"question": "", "question_id": int(item.id), "answer": reply(i)} for i, item in enumerate(items)]
    return [listed(out / "textvqa.json", rows)]


def ai2d(out: Path, items: Items) -> list[Path]:
    rows = [
        {"question": question_of(item), "image": item.meta["question_id"], "answer": reply(i), "annotation": item.gold}
        for i, item in enumerate(items)
    ]
    return [listed(out / "ai2d.json", rows)]


def chartqa(out: Path, items: Items) -> list[Path]:
    return [
        listed(
            out / f"chartqa_test_{group}_241213101500.json",
            [{"question": question_of(item), "answer": reply(i), "annotation": item.gold} for i, item in members],
        )
        for group, members in grouped(items).items()
    ]


def gqa(out: Path, items: Items) -> list[Path]:
    rows = [{"questionId": item.id, "prediction": reply(i)} for i, item in enumerate(items)]
    return [listed(out / "testdev_balanced_predictions.json", rows)]


def seed(out: Path, items: Items) -> list[Path]:
    rows = [{"question_id": item.id, "prediction": reply(i), "answer": item.gold} for i, item in enumerate(items)]
    return [jsonl(out / "seed.jsonl", rows)]


def mmbench(out: Path, items: Items) -> list[Path]:
    rows = [
        {**item.meta["row"], "index": int(item.id), "prediction": reply(i)} for i, item in reversed([*enumerate(items)])
    ]
    return [table(out / "mmbench_dev_20230712_241213.xlsx", rows)]


def mapping(out: Path, items: Items) -> list[Path]:
    return [listed(out / "replies.json", {item.id: reply(i) for i, item in enumerate(items)})]


def mathvista(out: Path, items: Items) -> list[Path]:
    results = {item.id: {"query": "q", "answer": item.gold, "response": reply(i)} for i, item in enumerate(items)}
    return [listed(out / "mathvista.json", results)]


def mme(out: Path, items: Items) -> list[Path]:
    for group, members in grouped(items).items():
        lines = [
            f"{item.meta['set']}\t{question_of(item)}\t{item.gold.title()}\t{reply(i)}".replace("\n", "")
            for i, item in members
        ]
        path = out / "InternVL-Chat-V1-2" / f"{group}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    return [out / "InternVL-Chat-V1-2"]


def refcoco(out: Path, items: Items) -> list[Path]:
    rows = [
        {"image_path": "x", "text": question_of(item), "answer": reply(i), "gt_bbox": item.gold, "hw": item.meta["hw"]}
        for i, item in enumerate(items)
    ]
    return [listed(out / "refcoco_val_2401.json", rows)]


def mvbench(out: Path, items: Items) -> list[Path]:
    rows = [{"pred": reply(i), "gt": item.gold, "task_type": item.group} for i, item in enumerate(items)]
    return [listed(out / "MVBench_2412.json", {"acc_dict": {"a": [1, 2]}, "res_list": rows})]


def milebench(out: Path, items: Items) -> list[Path]:
    for group, members in grouped(items).items():
        rows = [
            {"sample_id": int(tail(item)), "question": "", "gt_response": item.gold, "pred_response": reply(i)}
            for i, item in members
        ]
        listed(out / "eval_milebench" / group / "pred.json", rows)
        listed(out / "eval_milebench" / group / "eval.json", {"Accuracy": 1.0})
    return [out / "eval_milebench"]


def mmniah(out: Path, items: Items) -> list[Path]:
    for group, members in grouped(items).items():
        rows = [
            {"question_id": int(tail(item)), "question": "", "answer": item.gold, "response": reply(i)}
            for i, item in members
        ]
        folder = out / "eval_mm_niah_64" / f"{group}-test"
        jsonl(folder / f"V2PE_{group}-test.jsonl", rows)
        jsonl(folder / f"temp_V2PE_{group}-test" / f"0_8_V2PE_{group}-test.jsonl", rows[:1])
    return [out / "eval_mm_niah_64"]


def longvqa(out: Path, items: Items) -> list[Path]:
    for group, members in grouped(items).items():
        rows = [{"id": tail(item), "an": item.gold, "pr": reply(i), "le": 9} for i, item in members]
        jsonl(out / "long" / f"longvqa_{group}_32" / f"result_{group}.jsonl", rows)
        listed(out / "long" / f"longvqa_{group}_32" / f"score_{group}.json", {"RACC": 1.0})
    return [out / "long"]


def vlmevalkit(out: Path, items: Items) -> list[Path]:
    """`index` counts from 0 in the harness's table, which holds question and answer."""
    rows = [
        {"index": i, "question": question_of(item), "answer": item.gold, "prediction": reply(i)}
        for i, item in enumerate(items)
    ]
    return [table(out / "model_POPE.tsv", rows)]


def lmms_eval(out: Path, items: Items) -> list[Path]:
    rows = [
        {
            "doc_id": i,
            "doc": {"question_id": item.id, "question": question_of(item)},
            "target": item.gold,
            "resps": [[reply(i)]],
            "filtered_resps": [reply(i)],
        }
        for i, item in enumerate(items)
    ]
    return [jsonl(out / "20260806_samples_pope.jsonl", rows)]


def lmms_eval_by_number(out: Path, items: Items) -> list[Path]:
    rows = [
        {"doc_id": i, "doc": {"question": question_of(item)}, "target": item.gold, "resps": [[reply(i)]]}
        for i, item in enumerate(items)
    ]
    return [jsonl(out / "20260806_samples_refcoco.jsonl", rows[::-1])]


def simple(out: Path, items: Items) -> list[Path]:
    return [jsonl(out / "mine.jsonl", [{"id": item.id, "prediction": reply(i)} for i, item in enumerate(items)])]
