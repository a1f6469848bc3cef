"""What a judge said is read whole: a letter or a number that stands alone, or nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.judge_server import JudgeServer as Server
from support.judge_server import math, vet
from vlm.eval.backends.judge import judge_reply
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import load_items
from vlm.eval.mini import make_mini
from vlm.eval.saved.score import score_predictions
from vlm.eval.scorers.judged import is_number, judge_extraction, judge_letter, read_grade

MMVET, MATH = load_benchmark("MM-Vet"), load_benchmark("MathVista")


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("b) dog", "B"),
        ("B. dog", "B"),
        ("B.dog", "B"),
        ("Answer: B", "B"),
        ("answer: b", "B"),
        ("The answer is B", "B"),
        ("Option B.", "B"),
        ("**B**", "B"),
        (r"\boxed{B}", "B"),
        ("答案：B", "B"),
        ("B\nB", "B"),
        ("<think>A? Or C?</think>\nB", "B"),
        ("A is the option that it means", "A"),
        ("Z", "Z"),
        ("Z (none of them)", None),
        ("Both", None),
        ("Both A and B", None),
        ("Based on the reply, none fits", None),
        ("Cannot tell", None),
        ("Answer", None),
        ("Definitely a dog", None),
        ("A dog", None),
        ("A dog is in the answer", None),
        ("The answer is a dog", None),
        ("A or B", None),
        ("A, B", None),
        ("A/B", None),
        ("AB", None),
        ("E", None),
        ("Q", None),
        ("D.C.", None),
        ("", None),
        ("I can't see B's text", None),
    ],
)
def test_a_judge_names_one_letter_that_stands_alone_or_none(said: str, letter: str | None) -> None:
    assert judge_letter(said, set("ABCDZ")) == letter


@pytest.mark.parametrize(
    ("said", "grade"),
    [
        ("0.5", "0.5"),
        (".5", "0.5"),
        ("1", "1.0"),
        ("1.0.", "1.0"),
        ("0.50 ", "0.5"),
        ("| 0.8 |", "0.8"),
        ("**0.7**", "0.7"),
        ("1/1", "1.0"),
        ("0.5 / 1.0", "0.5"),
        ("0.5 out of 1", "0.5"),
        ("Score: 0.5", "0.5"),
        ("The score is 0.4, because two of 5 objects are named.", "0.4"),
        ("0.5 because it is half right", "0.5"),
        ("<think>0.9?</think>0.2", "0.2"),
        ("1 out of 10", None),
        ("1 / 10", None),
        ("1/10", None),
        ("1 of 2", None),
        ("0,5", None),
        ("0.5-0.6", None),
        ("0.5 – 0.6", None),
        ("0 to 1", None),
        ("0 or 1", None),
        ("0.5, 0.7", None),
        ("1%", None),
        ("1 percent", None),
        ("0.5.1", None),
        ("1.5", None),
        ("10", None),
        ("1,000", None),
        ("-0.5", None),
        ("The reply names 1 cat", None),
        ("inf", None),
        ("nan", None),
    ],
)
def test_a_grade_is_a_number_that_stands_alone(said: str, grade: str | None) -> None:
    assert read_grade(said) == grade


@pytest.mark.parametrize(
    ("said", "choices", "number", "found"),
    [
        ("B", ["Ada", "Bo"], False, "B"),
        ("Answer: B", ["Ada", "Bo"], False, "B"),
        ("B. Bo", ["Ada", "Bo"], False, "B"),
        ("bo.", ["Ada", "Bo"], False, "Bo"),
        ("Both", ["Ada", "Bo"], False, None),
        ("Another", ["Ada", "Bo"], False, None),
        ("A or B", ["Ada", "Bo"], False, None),
        ("14", [], True, "14"),
        ("14.", [], True, "14."),
        ("-1.5e3", [], True, "-1.5e3"),
        ("14 out of 20", [], True, None),
        ("50%", [], True, None),
        ("1-2", [], True, None),
        ("1_000", [], True, None),
        ("inf", [], True, None),
        ("nan", [], True, None),
        ("1e400", [], True, None),
        ("[1, 2]", [], False, "[1, 2]"),
        ("None", [], True, ""),
    ],
)
def test_an_extraction_is_read_whole(said: str, choices: list[str], number: bool, found: str | None) -> None:
    assert judge_extraction(said, choices, number=number) == found


def test_infinity_is_no_number() -> None:
    assert not any(map(is_number, ("inf", "-Infinity", "nan", "1_0", "٣", "", " ")))
    assert judge_reply(MATH, math(form="integer", gold="14"), "inf", None).detail != "needs no judge"


def test_an_unreadable_judge_is_asked_once_more_and_no_oftener(server: Server, tmp_path: Path) -> None:
    server.replies = [(200, "1 out of 10"), (200, "0.1")]
    assert judge_reply(MMVET, vet(), "x", server.judge(tmp_path)).text == "0.1" and len(server.asked) == 2
    server.replies = [(200, "1 out of 10")]
    verdict = judge_reply(MMVET, vet(), "y", server.judge(tmp_path))
    assert verdict.kind == "nonsense" and "1 out of 10" in verdict.detail and len(server.asked) == 4


def test_kept_answers_are_read_again_by_new_rules(server: Server, tmp_path: Path) -> None:
    judge_reply(MMVET, vet(), "x", server.judge(tmp_path))
    (kept,) = tmp_path.iterdir()
    about = json.loads(kept.read_text())
    assert about["reply"] == "0.8"
    kept.write_text(json.dumps({**about, "reply": "1 out of 10"}))  # as an older version kept it, read as 1.0
    server.replies = [(200, "0.1")]
    assert judge_reply(MMVET, vet(), "x", server.judge(tmp_path)).text == "0.1" and len(server.asked) == 2


@pytest.mark.parametrize(
    ("said", "score"), [("Answer: B", True), ("Based on the reply, none fits", None), ("Cannot tell", None)]
)
def test_the_headline_holds_only_what_the_judge_said(said: str, score: Any, server: Server, tmp_path: Path) -> None:
    table = load_benchmark("mmbench-dev-en")
    data = make_mini("mmbench-dev-en", tmp_path / "mini")
    items = load_items(table, data)
    file = tmp_path / "preds.jsonl"
    vague = "Hard to say, it looks like something"
    file.write_text("".join(json.dumps({"id": item.id, "prediction": vague}) + "\n" for item in items))
    server.replies = [(200, said)]
    out = tmp_path / "out"
    summary = score_predictions(table, [file], out, data=data, name="x", judge=server.judge(tmp_path / "cache"))
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().split("\n")[:-1]]
    assert {row["judge"]["kind"] for row in rows} == {"judged" if score else "nonsense"}
    assert all(row["score"] == (float(row["gold"] == "B") if score else None) for row in rows)
    assert summary["judge"]["verdicts"] == {"judged" if score else "nonsense": len(items)}
