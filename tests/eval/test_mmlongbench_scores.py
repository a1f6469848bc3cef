"""MMLongBench: the published rules on replies, and summaries before a judge."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.benchmark_check import metrics
from support.judge_server import JudgeServer
from vlm.eval.backends.judge import Verdict, judge_reply
from vlm.eval.benchmark import Benchmark, JudgeRule, load_benchmark
from vlm.eval.loaders import Item, load_items
from vlm.eval.mini import make_mini
from vlm.eval.run.score import score_item
from vlm.eval.scorers import SCORERS

CASES: list[tuple[str, Any, str, dict[str, Any], float, float]] = [
    ("entity", ["Lake Geneva"], "It is lake geneva, in Switzerland.", {}, 1, 1),
    ("entity", ["Paris"], "Answer: comparison", {}, 1, 0),
    ("entity", ["!"], "no idea", {}, 1, 0),
    ("entity", ["The Hague"], "hague", {}, 1, 1),
    ("entity", ["1912", "1913"], "Built in 1913", {}, 1, 1),
    ("entity", ["Oslo"], "not Oslo but Lima", {}, 1, 0),
    ("binary", "Yes", "Yes, there is.", {"guess": 0}, 1, 1),
    ("binary", "Yes", "No dog but a cat: yes", {"guess": 0}, 1, 0),
    ("binary", "No", "I cannot tell", {"guess": 0}, 1, 0),
    ("binary", "Yes", "I cannot tell", {"guess": 1}, 1, 0),
    ("binary", "No", "It is not yes", {"guess": 0}, 0, 1),
    ("binary", "No", "", {"guess": 1}, 0, 0),
    ("counting", [2, 1], "[1, 2]", {}, 1, 1),
    ("counting", [2, 1], "2 and 1", {}, 1, 1),
    ("counting", [2, 1], "The counts are [2, 1].", {}, 1, 1),
    ("counting", [3], "In 2 pictures and 1 more", {}, 1, 0),
    ("counting", [2, 1], '["2", "1"]', {}, 1, 1),
    ("counting", [2, 1], "three", {}, 0, 0),
    ("counting", [2, 1], "[2, 1, 4]", {}, 0, 0),
    ("choice", 1, "B", {}, 1, 1),
    ("choice", 1, "Because of the sky, it is D", {}, 1, 0),
    ("choice", 3, "The answer is (D)", {}, 1, 1),
    ("choice", 2, "C. the red one", {}, 1, 1),
    ("choice", 0, "I think it is A", {}, 1, 1),
    ("choice", 0, "a", {}, 0, 1),
    ("choice", 4, "Either D or E", {}, 1, 0),
    ("label", 7, "label: 7", {}, 1, 1),
    ("label", 7, "7", {}, 1, 1),
    ("label", 7, "There are 7 cars", {}, 1, 0),
    ("label", 7, "label: 5, not 7", {}, 1, 0),
    ("label", 7, "It looks like 7.5", {}, 0, 0),
    ("label", 12, "The label is 12.", {}, 1, 1),
    ("label", 2, "label: 2nd", {}, 1, 0),
    ("document", "3", "3", {"answer_format": "Integer"}, 1, 1),
    ("document", "3", "between 2 and 3", {"answer_format": "Integer"}, 1, 0),
    ("document", "64933961", "64,933,961.", {"answer_format": "Integer"}, 1, 1),
    ("document", "5", "5 miles", {"answer_format": "Integer"}, 1, 1),
    ("document", "12", "twelve", {"answer_format": "Integer"}, 0, 0),
    ("document", "868.3", "$868.3 billion", {"answer_format": "Float"}, 1, 1),
    ("document", "0.25", "25%", {"answer_format": "Float"}, 1, 1),
    ("document", "470.85", "470.86", {"answer_format": "Float"}, 1, 1),
    ("document", "10%", "either 10% or 20%", {"answer_format": "Float"}, 1, 0),
    ("document", "blue whale", "The blue whale", {"answer_format": "String"}, 1, 1),
    ("document", "blue whale", "It is a whale of blue color", {"answer_format": "String"}, 0.5, 0.666667),
    ("document", "2010-05-01", "on 2010-05-01", {"answer_format": "String"}, 1, 1),
    ("document", "page 3", "Page 3", {"answer_format": "String"}, 0, 1),
    ("document", "Not answerable", "Not answerable.", {"answer_format": "None"}, 1, 1),
    ("document", "Not answerable", "The document does not say", {"answer_format": "None"}, 0.333333, 0.333333),
    ("document", '["black", "white"]', "white, black", {"answer_format": "List"}, 1, 1),
    ("document", '["Ada", 3, "50%"]', "Ada has 3, that is 0.5", {"answer_format": "List"}, 0.761905, 0.761905),
    ("document", '["2010", "2011"]', "2010", {"answer_format": "List"}, 0.5, 0.5),
]
"""Rule, reference, reply, arguments, the published function's value (run on these replies), the corrected value."""


@pytest.mark.parametrize(("rule", "gold", "reply", "more", "published", "fixed"), CASES)
def test_scores(rule: str, gold: Any, reply: str, more: dict[str, Any], published: float, fixed: float) -> None:
    scorer = SCORERS[f"mmlongbench_{rule}"]
    assert scorer(gold, reply, **more) == pytest.approx(published, abs=1e-5)
    assert scorer(gold, reply, **more, compat="fixed") == pytest.approx(fixed, abs=1e-5)


# the judge of summaries ----------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    found = JudgeServer()
    yield found
    found.http.shutdown()
    found.http.server_close()


@pytest.fixture
def summaries(tmp_path: Path) -> tuple[Benchmark, list[Item]]:
    table = load_benchmark("mmlongbench-summ-8k")
    return table, load_items(table, make_mini(table.name, tmp_path / "mini", seed=5))


@pytest.fixture
def summary(summaries: tuple[Benchmark, list[Item]]) -> tuple[Benchmark, Item]:
    table, items = summaries
    return table, next(item for item in items if item.group == "multi-lexsum")


def test_a_summary_is_judged_by_three_questions(server: JudgeServer, summary: Any, tmp_path: Path) -> None:
    table, item = summary
    server.replies = [
        (200, 'It reads well. {"fluency": 1}'),
        (200, 'Point 1 holds.\n```json\n{"supported_key_points": [1], "recall": 1}\n```'),
        (200, '{"precision": 2, "sentence_count": 3}'),
    ]
    verdict = judge_reply(table, item, " A summary. ", server.judge(tmp_path))
    assert verdict == Verdict("judged", "fluency 1, recall 1/2, precision 2/3")
    for compat in ("upstream", "fixed"):
        assert score_item(table, item, "A summary.", compat, verdict).value == pytest.approx(
            2 * 1 / 2 * 2 / 3 / (7 / 6)
        )
    fluency, recall, precision = [body["messages"][0]["content"] for body in server.asked]
    assert {body["max_tokens"] for body in server.asked} == {4096}
    assert all("<summary>\nA summary.\n</summary>" in prompt for prompt in (fluency, recall, precision))
    assert item.gold not in fluency and item.gold in precision and item.gold not in recall
    assert "\n".join(f"{n}. {claim}" for n, claim in enumerate(item.meta["claims"], 1)) in recall
    again = judge_reply(table, item, "A summary.", server.judge(tmp_path))
    assert again == verdict and len(server.asked) == 3  # kept


@pytest.mark.parametrize("last", ["no JSON", '{"precision": 4, "sentence_count": 3}', '{"precision": true}', "{}"])
def test_a_verdict_that_cannot_be_read_is_none(last: str, server: JudgeServer, summary: Any, tmp_path: Path) -> None:
    table, item = summary
    server.replies = [(200, '{"fluency": 1}'), (200, '{"recall": 2}'), (200, last)]
    verdict = judge_reply(table, item, "A summary.", server.judge(tmp_path, attempts=1))
    assert verdict.kind == "nonsense" and verdict.detail.startswith("precision: ")
    assert score_item(table, item, "A summary.", "upstream", verdict).value is None


def test_without_a_judge_there_is_no_number(summaries: tuple[Benchmark, list[Item]]) -> None:
    table, items = summaries
    found = metrics(table, items, ["A summary."] * len(items))
    assert found[0].name == "Summ" and found[0].value is None
    with pytest.raises(ValueError, match="parts"):
        JudgeRule(kind="claims", instruction="grade it", source="-")


def test_a_faulty_summary_has_the_score_of_its_fluency() -> None:
    score = SCORERS["mmlongbench_fluency_f1"]
    assert score("fluency 0, recall 2/2, precision 3/3") == 0 and score("fluency 1, recall 2/2, precision 3/3") == 1
    assert score("fluency 1, recall 0/0, precision 0/0") == 0
    with pytest.raises(ValueError, match="no verdict"):
        score("0.8")
