"""`vlm eval score`: files as the published scripts and the harnesses write them, and everything that can be wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import prediction_files as files
from vlm.core.errors import ConfigError, DataError
from vlm.eval.backends.judge import question_of
from vlm.eval.benchmark import Benchmark, load_benchmark
from vlm.eval.loaders import Item, load_items
from vlm.eval.mini import make_mini
from vlm.eval.saved.predictions import group_of
from vlm.eval.saved.score import PROBLEMS, score_predictions

Items = list[Item]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Benchmark, Items, Path]]:
    root = tmp_path_factory.mktemp("mini")

    def get(name: str) -> tuple[Benchmark, Items, Path]:
        table = load_benchmark(name)
        folder = make_mini(name, root / table.name)
        return table, load_items(table, folder), folder

    return get


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


CASES: list[tuple[str, Callable[[Path, Items], list[Path]], str, str]] = [
    ("POPE", files.pope, "LLaVA answers", "question_id"),
    ("DocVQA", files.docvqa, "InternVL VQA result", "questionId"),
    ("TextVQA", files.textvqa, "VQA result", "question_id"),
    ("AI2D", files.ai2d, "AI2D result", ""),
    ("ChartQA", files.chartqa, "ChartQA result", "the order in the file"),
    ("GQA", files.gqa, "GQA predictions", "questionId"),
    ("SEED-I", files.seed, "SEED-Bench result", "question_id"),
    ("MMBench-dev-en", files.mmbench, "VLMEvalKit or MMBench table", "index"),
    ("MMMU", files.mapping, "records of id and reply", "id"),
    ("MM-Vet", files.mapping, "records of id and reply", "id"),
    ("MathVista", files.mathvista, "MathVista result", "pid"),
    ("MME", files.mme, "MME result", "mme_line"),
    ("RefCOCO-val", files.refcoco, "RefCOCO result", "the order in the file"),
    ("MVBench", files.mvbench, "MVBench result", "the order in the file"),
    ("MileBench", files.milebench, "MileBench pred.json", "sample_id"),
    ("MM-NIAH", files.mmniah, "MM-NIAH result", "question_id"),
    ("Long-VQA-32k", files.longvqa, "Long-VQA result", "id"),
    ("POPE", files.vlmevalkit, "VLMEvalKit or MMBench table", ""),
    ("RealWorldQA", files.vlmevalkit, "VLMEvalKit or MMBench table", ""),
    ("POPE", files.lmms_eval, "lmms-eval samples", "question_id"),
    ("RefCOCO-val", files.lmms_eval_by_number, "lmms-eval samples", "doc_id, as a number in data order"),
    ("ScienceQA", files.simple, "records of id and reply", "id"),
]


@pytest.mark.parametrize(("name", "write", "known_as", "how"), CASES, ids=[f"{c[0]}-{c[1].__name__}" for c in CASES])
def test_published_files_are_recognized_and_each_reply_reaches_its_item(
    name: str, write: Callable, known_as: str, how: str, data: Any, tmp_path: Path
) -> None:
    benchmark, items, folder = data(name)
    summary = score_predictions(benchmark, write(tmp_path, items), tmp_path / "out", data=folder, name="theirs")
    about = summary["imported"]
    assert about["format"] == known_as and (not how or about["joined"] == how)
    assert [row["completion"] for row in rows_of(tmp_path / "out")] == [files.reply(i) for i in range(len(items))]
    assert summary["outcomes"] == {"ok": len(items)} and about["predictions"] == len(items)
    assert set(about["problems"]) <= {"mistyped id"}


def scored(
    records: list[Any], data: Any, tmp_path: Path, name: str = "POPE", **more: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The summary, and the rows by id."""
    benchmark, _, folder = data(name)
    path = files.jsonl(tmp_path / "answers.jsonl", records)
    summary = score_predictions(benchmark, [path], tmp_path / "out", data=folder, name="theirs", **more)
    return summary, {row["id"]: row for row in rows_of(tmp_path / "out")}


def test_each_problem_is_typed_counted_and_never_scored_in_silence(data: Any, tmp_path: Path) -> None:
    _, items, _ = data("POPE")
    records: list[Any] = [{"question_id": int(item.id), "text": item.gold} for item in items]
    records[0]["text"] = ""
    records[1]["text"] = None
    records[2]["text"] = float("nan")
    records[3]["text"] = 7
    records[4]["text"] = ["yes"]
    records[5]["question_id"] = str(records[5]["question_id"])
    records[6]["question_id"] = float(records[6]["question_id"])
    records += [dict(records[7]), {**records[8], "text": "something else"}]
    records += [{"question_id": 999_999, "text": "yes"}, {"question_id": None, "text": "no"}, {"question_id": 3}, 5]
    del records[9]
    summary, rows = scored(records, data, tmp_path)
    problems = {kind: found["n"] for kind, found in summary["imported"]["problems"].items()}
    assert problems == {
        "missing": 1,
        "conflict": 1,
        "duplicate": 1,
        "extra": 1,
        "bad record": 3,
        "mistyped id": 2,
        "empty": 1,
        "null": 1,
        "NaN": 1,
        "not text": 2,
    }
    assert set(problems) <= set(PROBLEMS)
    unanswered = {"conflict": 8, "missing": 9, "null": 1, "NaN": 2, "not text": 3}
    for kind, i in unanswered.items():
        row = rows[items[i].id]
        assert (row["outcome"], row["score"], row["completion"]) == ("error", None, None)
        assert row["why"].startswith(kind)
    assert rows[items[0].id]["strict_score"] == 0 and rows[items[0].id]["completion"] == ""
    assert rows[items[7].id]["score"] == rows[items[5].id]["score"] == rows[items[6].id]["score"] == 1
    headline = summary["metrics"][0]
    assert (headline["scored"], headline["total"]) == (len(items) - 6, len(items))
    assert sum(summary["outcomes"].values()) == len(items) and summary["empty_answers"] == 1


def test_results_name_their_source_and_the_same_file_gives_the_same_bytes(data: Any, tmp_path: Path) -> None:
    _, items, _ = data("POPE")
    records = [{"question_id": item.id, "text": item.gold} for item in items]
    summary, rows = scored(records, data, tmp_path)
    files = ("results.jsonl", "summary.json")
    before = [(tmp_path / "out" / name).read_bytes() for name in files]
    assert len(summary["imported"]["files"][0]["sha256"]) == 64
    assert summary["provenance"]["decode"]["backend"] == "imported" and summary["metrics"][0]["value"] == 100
    scored(records, data, tmp_path)
    assert [(tmp_path / "out" / name).read_bytes() for name in files] == before
    records[0]["text"] = "maybe not"
    with pytest.raises(ConfigError, match="1 of them would be lost"):
        scored(records, data, tmp_path)
    _, others = scored(records, data, tmp_path, replace=True)
    assert [i for i in rows if rows[i]["key"] != others[i]["key"]] == [items[0].id]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no predictions"),
        ("[]", "holds no predictions"),
        ("{}", "holds no predictions"),
        ('[{"a": 1}]', "records with the keys a"),
        ("[1, 2]", "holds no predictions"),
        ('{"id": "0", "prediction": "yes"}\n{"id": "1", "pred', "line 2 is not JSON"),
        ('[{"id": "not-one", "prediction": "yes"}]', "cannot be matched to these items: id 'not-one'"),
        ('[{"id": "0", "prediction": null}]', "no prediction can be scored: missing .*, null 1"),
    ],
)
def test_what_is_no_predictions_is_an_error_and_writes_nothing(
    content: str, message: str, data: Any, tmp_path: Path
) -> None:
    benchmark, items, folder = data("POPE")
    path = tmp_path / "answers.json"
    path.write_text(content.replace('"0"', f'"{items[0].id}"'))
    with pytest.raises(DataError, match=f"(?s){message}"):
        score_predictions(benchmark, [path], tmp_path / "out", data=folder, name="theirs")
    assert not (tmp_path / "out").exists()


def test_missing_unknown_and_damaged_files_are_errors(data: Any, tmp_path: Path) -> None:
    benchmark, _, folder = data("POPE")
    (tmp_path / "a.pkl").write_bytes(b"x")
    (tmp_path / "b.xlsx").write_bytes(b"x")
    (tmp_path / "c.txt").write_text("one\ttwo\n")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("none.jsonl", "no such file"),
        ("a.pkl", "unknown kind of file"),
        ("b.xlsx", "cannot be read"),
        ("c.txt", "line 1 has 2 columns"),
        ("empty", "holds no predictions"),
    ):
        with pytest.raises(DataError, match=message):
            score_predictions(benchmark, [tmp_path / name], tmp_path / "out", data=folder, name="theirs")
    assert not (tmp_path / "out").exists()


def test_an_object_that_names_an_id_twice_is_a_conflict(data: Any, tmp_path: Path) -> None:
    benchmark, items, folder = data("MMMU")
    path = tmp_path / "replies.json"
    first, second = items[0].id, items[1].id
    path.write_text(f'{{"{first}": "A", "{second}": "B", "{first}": "C"}}')
    summary = score_predictions(benchmark, [path], tmp_path / "out", data=folder, name="theirs")
    assert summary["imported"]["problems"]["conflict"]["n"] == 1
    assert rows_of(tmp_path / "out")[0]["completion"] is None


def test_a_line_ends_at_a_line_feed_alone(data: Any, tmp_path: Path) -> None:
    benchmark, items, folder = data("MMMU")
    path = tmp_path / "replies.jsonl"
    path.write_bytes(b"".join(b'{"id": "%s",\r"prediction": "A"}\r\n' % item.id.encode() for item in items))
    summary = score_predictions(benchmark, [path], tmp_path / "out", data=folder, name="theirs")
    assert summary["outcomes"] == {"ok": len(items)}


def test_tables_keep_empty_cells_nan_and_numbers_apart(data: Any, tmp_path: Path) -> None:
    benchmark, items, folder = data("RealWorldQA")
    replies: list[Any] = ["", "nan", 3, 2.5, *[files.reply(i) for i in range(4, len(items))]]
    for name in ("a.tsv", "a.xlsx"):
        rows = [
            {"index": item.id, "question": question_of(item), "answer": item.gold, "prediction": text}
            for item, text in zip(items, replies, strict=True)
        ]
        path = files.table(tmp_path / name, rows)
        summary = score_predictions(benchmark, [path], tmp_path / name[2:], data=folder, name="theirs")
        found = rows_of(tmp_path / name[2:])
        assert [row["completion"] for row in found[:4]] == ["", None, "3", "2.5"]
        assert (found[0]["outcome"], found[0]["score"]) == ("ok", 0) and found[1]["why"].startswith("NaN")
        assert summary["imported"]["problems"]["empty"]["n"] == 1
        assert summary["imported"]["problems"].get("number cell", {"n": 0})["n"] == (2 if name == "a.xlsx" else 0)


def test_numbers_are_not_believed_when_the_questions_are_others(data: Any, tmp_path: Path) -> None:
    """yes, no, yes, no: in another order the references still agree, and the F1 of each category would be of others."""
    benchmark, items, folder = data("POPE")
    moved = items[2:] + items[:2]
    rows = [
        {"index": i, "question": question_of(item), "answer": item.gold, "prediction": "yes"}
        for i, item in enumerate(moved)
    ]
    with pytest.raises(DataError, match="questions agree"):
        score_predictions(benchmark, [files.table(tmp_path / "a.tsv", rows)], tmp_path / "out", data=folder, name="x")
    bare = [{key: row[key] for key in ("index", "answer", "prediction")} for row in rows[:-2]]
    with pytest.raises(DataError, match="cannot be matched"):
        score_predictions(benchmark, [files.table(tmp_path / "b.tsv", bare)], tmp_path / "out", data=folder, name="x")


def test_predictions_of_another_benchmark_are_refused_by_their_references(data: Any, tmp_path: Path) -> None:
    benchmark, items, folder = data("RealWorldQA")
    rows = [{"question_id": item.id, "prediction": "x", "answer": "something"} for item in items]
    with pytest.raises(DataError, match="0% of the references agree"):
        score_predictions(benchmark, [files.jsonl(tmp_path / "a.jsonl", rows)], tmp_path / "out", data=folder, name="x")
    rows = [{"question_id": item.id, "prediction": "x", "answer": item.gold} for item in items]
    rows[0]["answer"] = "corrected"
    path = files.jsonl(tmp_path / "b.jsonl", rows)
    summary = score_predictions(benchmark, [path], tmp_path / "out", data=folder, name="x")
    assert summary["imported"]["problems"]["other reference"]["n"] == 1


def test_lines_without_ids_are_taken_only_when_all_are_there(data: Any, tmp_path: Path) -> None:
    benchmark, items, folder = data("RefCOCO-val")
    [path] = files.refcoco(tmp_path, items[:-1])
    with pytest.raises(DataError, match="cannot be matched"):
        score_predictions(benchmark, [path], tmp_path / "out", data=folder, name="x")


def test_the_group_is_read_from_the_name_of_a_file_or_its_folder() -> None:
    groups = ["retrieval-text", "text", "human", "DocVQA"]
    assert group_of(Path("x/V2PE_retrieval-text-test.jsonl"), groups) == "retrieval-text"
    assert group_of(Path("docvqa/pred.json"), groups) == "DocVQA"
    assert group_of(Path("chartqa_test_human_2412.json"), groups) == "human"
    assert group_of(Path("superhumans/answers.json"), groups) == ""


def test_an_id_of_no_item_is_not_taken_for_the_name_of_an_image(data: Any, tmp_path: Path) -> None:
    _, items, _ = data("easyVQA")
    names = {item.meta["cluster"] for item in items} - {item.id for item in items}
    records = [{"question_id": item.id, "text": "x"} for item in items]
    records += [{"question_id": name, "text": "x"} for name in names or {"999999"}]
    summary, _ = scored(records, data, tmp_path, "easyVQA")
    assert summary["imported"]["problems"] == {
        "extra": {"n": len(names or {""}), "examples": summary["imported"]["problems"]["extra"]["examples"]}
    }


def test_rows_of_our_own_results_keep_their_outcome(data: Any, tmp_path: Path) -> None:
    _, items, _ = data("POPE")
    records = [{"id": item.id, "outcome": "ok", "completion": item.gold, "why": "right"} for item in items]
    kinds = ["unanswered", "oom", "refused", "error"]
    for record, kind in zip(records, kinds, strict=False):
        record |= {"outcome": kind, "completion": None, "why": f"for a reason: {kind}"}
    records[4] |= {"outcome": "truncated"}
    records[5] |= {"outcome": "ok", "completion": None}
    records[6] |= {"outcome": "of another version", "completion": None}
    summary, rows = scored(records, data, tmp_path)
    found = [rows[item.id] for item in items]
    assert [row["outcome"] for row in found[:8]] == [*kinds, "truncated", "error", "error", "ok"]
    assert [row["why"] for row in found[:4]] == [f"for a reason: {kind}" for kind in kinds]
    assert all(row["score"] is row["strict_score"] is row["completion"] is None for row in [*found[:4], *found[5:7]])
    problems = {kind: found["n"] for kind, found in summary["imported"]["problems"].items()}
    assert problems == {"no answer": 1, "not answered": 3, "null": 2}
    again = score_predictions(
        data("POPE")[0], [tmp_path / "out" / "results.jsonl"], tmp_path / "again", data=data("POPE")[2], name="theirs"
    )
    assert again["outcomes"] == summary["outcomes"] and again["metrics"] == summary["metrics"]
