"""lmms-eval and VLMEvalKit themselves score the same saved predictions: our numbers under their names are theirs.

Each runs in its own virtual environment on several hundred replies in mixed styles for POPE, ChartQA, MME and MMBench.
Where our published rule differs, the note of the metric names the rule and counts the replies, and so does the harness.
"""

import base64
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from support import prediction_files as files
from support.environments import call, environment
from vlm.eval.backends.judge import question_of
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import Item, load_items
from vlm.eval.mini import make_mini
from vlm.eval.run.summary import Summary
from vlm.eval.saved.score import score_predictions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SIZES = {"POPE": 110, "ChartQA": 150, "MME": 12, "MMBench-dev-en": 110}
YES_NO = (
    *("yes", "no", "Yes", "No", "Yes.", "No.", "yes, there is", "No, it is not", "There is one", "There is not"),
    *("unknown", "not sure", " no ", "snow", "yesterday", "y", "n", "N.", "YES!", "NO\n", "no yes"),
    *("yes or no", "no-one"),
    *("It is not there. No", "是", "否", "", "The answer is yes", "Definitely not. no", "nope"),
)
ABOUT_TEXT = ("{}", " {} ", "{}.", "The answer is {}", "{}%", "about {}", "{}\n", "**{}**")


def replies(name: str, items: list[Item]) -> dict[str, str]:
    """A reply for each item, most of them in the words of models, some empty."""
    rng = random.Random(7)
    found = {}
    for item in items:
        gold, options = item.gold, item.meta.get("options", {})
        if name in ("POPE", "MME"):
            reply = rng.choice([*YES_NO, *[gold, gold.title()] * 12])
        elif name == "ChartQA":
            number = re.fullmatch(r"-?\d+(\.\d+)?", gold)
            near = (
                [f"{float(gold) * f:.6g}" for f in (0.95, 0.952, 1.05, 1.0526, 0.9, 1.1)] if number else [gold.upper()]
            )
            reply = rng.choice([*near, *[form.format(gold) for form in ABOUT_TEXT], *[gold] * 6, "7", ""])
        else:
            other = rng.choice(list(options))
            forms = f"{gold}.|({gold})|({gold}).|{gold})|{gold}:|:{gold}|answer:{gold}|The answer is {gold}".split("|")
            more = [options[gold], other, f"{other}. {options[other]}", f"{gold} or {other}", "I do not know", ""]
            more += [f"A shape, so {gold}", f"The answer is {options[gold]}", f"It is {options[gold].upper()}!", "e"]
            more += [
                f"{gold}, because nothing else in this picture fits",
                f"Option{gold}",
                "Cannot determine the answer",
            ]
            reply = rng.choice([*[gold] * 40, *forms, *more])
        found[item.id] = reply
    assert len(set(found.values())) > 15 and len(found) >= 250
    return found


@pytest.fixture(scope="module", params=SIZES)
def case(request: Any, tmp_path_factory: Any) -> Any:
    """(table, folder of its miniature, items, replies)."""
    table = load_benchmark(request.param)
    folder = make_mini(table.name, tmp_path_factory.mktemp("data") / table.name, n=SIZES[request.param])
    items = load_items(table, folder)
    return table, folder, items, replies(table.name, items)


LMMS = """
import importlib, json, sys
name, rows = sys.argv[1], json.load(open(sys.argv[2]))
module = "mmbench.en_utils" if name.startswith("MMBench") else f"{name.lower()}.utils"
utils = importlib.import_module(f"lmms_eval.tasks.{module}")
process = [getattr(utils, f) for f in dir(utils) if f.endswith("process_results")][0]
made = [process(row["doc"], row["filtered_resps"]) for row in rows]
if name == "POPE":
    each = [m["pope_accuracy"] for m in made]
    numbers = {"F1": 100 * utils.pope_aggregate_f1_score(each), "accuracy": 100 * utils.pope_aggregate_accuracy(each)}
    scores = [e["score"] for e in each]
elif name == "ChartQA":
    scores = [m["relaxed_overall"] for m in made]
    numbers = {"relaxed accuracy": 100 * sum(scores) / len(scores)}
    for group, key in (("human", "relaxed_human_split"), ("augmented", "relaxed_augmented_split")):
        part = [m[key] for m in made if key in m]
        numbers[f"relaxed accuracy/{group}"] = 100 * sum(part) / len(part)
elif name == "MME":
    keys = {"perception": "mme_perception_score", "cognition": "mme_cognition_score"}
    numbers = {k: utils.mme_aggregate_results([m[v] for m in made if v in m]) for k, v in keys.items()}
    scores = [next(iter(m.values()))["score"] for m in made]
else:
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer
    judge, each = utils.mmbench_evaluator, [m["gpt_eval_score"] for m in made]
    numbers = {"circular accuracy": 100 * judge.eval_result(each, eval_method="static")[0]}
    letters = [judge.prefetch_answer(e) or extract_mcq_answer(e["prediction"], choices=list("ABCD")) for e in each]
    scores = [float(letter == e["answer"]) for letter, e in zip(letters, each)]
json.dump({"numbers": numbers, "scores": scores}, open(sys.argv[3], "w"))
"""


def lmms_doc(name: str, item: Item) -> dict[str, Any]:
    """The row of lmms-eval's own data set."""
    known: dict[str, Any] = {"question_id": item.id, "question": question_of(item), "answer": item.gold}
    if name == "MME":
        known |= {"question_id": item.meta["cluster"], "category": item.group}
    elif name == "ChartQA":
        known |= {"type": f"{item.group}_test"}
        del known["question_id"]
    elif name.startswith("MMBench"):
        row = item.meta["row"]
        known |= {"index": int(item.id), "question": row["question"], "hint": "nan", "source": "x", "split": "dev"}
        known |= {"category": "x", "L2-category": "x"} | {x: item.meta["options"].get(x, "nan") for x in "ABCD"}
    return known


def compare(summary: Summary, out: Path, harness: str, numbers: dict[str, float], scores: list[float]) -> None:
    """Our metrics of that harness are its numbers, and their notes count the replies that it scores otherwise."""
    ours = {m["name"]: m for m in summary["metrics"] if m["name"].endswith(f"({harness})")}
    assert {name: m["value"] for name, m in ours.items()} == {
        f"{name} ({harness})": pytest.approx(value, abs=1e-9) for name, value in numbers.items()
    }
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    apart = sum(float(theirs) != row["score"] for theirs, row in zip(scores, rows, strict=True))
    assert all(f"; {apart} of {len(rows)} replies score otherwise" in m["note"] for m in ours.values())
    assert 0 < sum(scores) < len(scores)


def test_lmms_eval_gives_our_numbers(case: Any, tmp_path: Path, request: Any) -> None:
    table, data, items, said = case
    python = environment(request.config.cache, "lmms-eval==0.7.3")
    rows = [
        {"doc_id": i, "doc": lmms_doc(table.name, x), "target": x.gold, "filtered_resps": [said[x.id]]}
        for i, x in enumerate(items)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "score.py").write_text(LMMS)
    call(python, tmp_path, "score.py", table.name, "rows.json", "theirs.json")
    theirs = json.loads((tmp_path / "theirs.json").read_text())
    path = files.jsonl(tmp_path / f"1_samples_{table.name.lower()}.jsonl", rows)
    summary = score_predictions(table, [path], tmp_path / "out", data=data, name="theirs")
    compare(summary, tmp_path / "out", "lmms-eval", theirs["numbers"], theirs["scores"])


KIT = """
import glob, json, os, shutil, sys
os.environ["LMUData"] = os.getcwd()
import pandas as pd
from vlmeval.dataset import ImageMCQDataset, ImageVQADataset, ImageYORNDataset, build_dataset
name, file = sys.argv[1:3]
for kind in (ImageMCQDataset, ImageVQADataset, ImageYORNDataset):
    kind.DATASET_MD5.pop(name, None)  # our tables are miniatures
def main():
    dataset = build_dataset(name)
    found = dataset.evaluate(file, model="exact_matching", nproc=1)
    table = pd.read_excel(file)
    if name == "POPE":
        row = found[found["split"] == "Overall"].iloc[0]
        numbers = {"F1": row["Overall"], "accuracy": row["acc"]}
    elif name == "MME":
        numbers = {"perception": found["perception"].iloc[0], "cognition": found["reasoning"].iloc[0]}
    elif name.startswith("ChartQA"):
        split = {"human": "test_human", "augmented": "test_augmented"}
        numbers = {f"relaxed accuracy/{k}": found[v].iloc[0] for k, v in split.items()}
        numbers["relaxed accuracy"] = found["Overall"].iloc[0]
    else:
        numbers = {"circular accuracy": 100 * found["Overall"].iloc[0]}
    if name in ("POPE", "MME"):
        scores = pd.read_excel(glob.glob("*_auxmatch.xlsx")[0])["score"]
    elif name.startswith("ChartQA"):
        scores = pd.read_excel(glob.glob("*_results.xlsx")[0])["eval_score"]
    else:
        from vlmeval.dataset.utils.multiple_choice import prefetch_answer
        table["prediction"] = [str(x) for x in table["prediction"]]
        scores = [prefetch_answer(table.iloc[i]) == table.iloc[i]["answer"] for i in range(len(table))]
    numbers = {k: float(v) for k, v in numbers.items()}
    json.dump({"numbers": numbers, "scores": [float(s) for s in scores]}, open("theirs.json", "w"))
if __name__ == "__main__":
    main()
"""
NAMES = {"POPE": "POPE", "MME": "MME", "ChartQA": "ChartQA_TEST", "MMBench-dev-en": "MMBench_DEV_EN"}


def kit_row(name: str, i: int, item: Item, picture: str) -> dict[str, Any]:
    """The row of VLMEvalKit's own table."""
    row = {"index": i, "question": question_of(item), "answer": item.gold, "image": picture}
    if name in ("POPE", "MME"):
        row |= {"answer": item.gold.title(), "category": item.group, "image_path": item.meta["cluster"]}
    elif name == "ChartQA":
        row |= {"split": f"test_{item.group}"}
    else:
        row |= {"index": int(item.id), "question": item.meta["row"]["question"], "category": "x", "split": "dev"}
        row |= {x: item.meta["options"].get(x) for x in "ABCD"}
    return row


def test_vlmevalkit_gives_our_numbers(case: Any, tmp_path: Path, request: Any) -> None:
    table, data, items, said = case
    python = environment(request.config.cache, "ms-vlmeval==0.0.20")
    dot = base64.b64encode(b"x" * 90).decode()
    rows = [kit_row(table.name, i, item, dot) for i, item in enumerate(items)]
    files.table(tmp_path / f"{NAMES[table.name]}.tsv", rows)
    path = files.table(
        tmp_path / f"model_{NAMES[table.name]}.xlsx",
        [{**row, "prediction": said[x.id]} for row, x in zip(rows, items, strict=True)],
    )
    kept = path.rename(tmp_path / f"kept_{table.name}.xlsx")
    path.write_bytes(kept.read_bytes())
    (tmp_path / "score.py").write_text(KIT)
    call(python, tmp_path, "score.py", NAMES[table.name], path.name)
    theirs = json.loads((tmp_path / "theirs.json").read_text())
    summary = score_predictions(table, [kept], tmp_path / "out", data=data, name="theirs")
    compare(summary, tmp_path / "out", "VLMEvalKit", theirs["numbers"], theirs["scores"])
