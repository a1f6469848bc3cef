"""Only answers are scored: reasoning without an end, empty and missing content are typed, counted, and in no mean."""

import json
from pathlib import Path
from typing import Any

import pytest

from support import openai_server as fake
from support.fake_backend import Reply
from vlm.core.errors import DataError
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import load_items
from vlm.eval.measures.reply import answer_text, why_unanswered
from vlm.eval.mini import make_mini
from vlm.eval.report.gather.comparability import caveats_of
from vlm.eval.run.runner import Options, run_evaluation
from vlm.eval.saved.evaluations import find_evaluations
from vlm.eval.saved.score import score_predictions

chat, server, Server = fake.chat, fake.server, fake.Server
TABLE = load_benchmark("POPE")


@pytest.fixture(scope="module")
def pope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mini("POPE", tmp_path_factory.mktemp("mini") / "pope", n=4)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().split("\n")[:-1]]


def run(server: Server, pope: Path, out: Path, content: Any, reason: str, **message: Any) -> tuple[Any, Any]:
    """The first question is answered with `yes`, the others as given."""
    first = load_items(TABLE, pope)[0].messages[0]["content"][-1]["text"].strip()

    def say(body: dict[str, Any], n: int) -> Any:
        asked = json.dumps(body["messages"])
        return (200, {}, chat() if json.dumps(first)[1:-1] in asked else chat(content, reason, **message))

    server.say = say
    return run_evaluation(TABLE, server.backend(), out, Options(batch_size=4), data=pope), rows_of(out)


SILENT = [
    ("", "length", {}),
    (" \n", "length", {}),
    ("", "length", {"reasoning": "Let me think about"}),
    (None, "length", {"reasoning_content": "Let me think. Yes it is", "refusal": None}),
    (None, "stop", {"reasoning_content": "The answer is Yes", "tool_calls": []}),
    (None, "tool_calls", {"tool_calls": [{"id": "1"}]}),
    ("<think>\nOkay, the user asks; there is no way to", "length", {}),
    ("<think>\nYes, yes, yes", "stop", {}),
    ("<think>yes</think>", "length", {}),
    ("<think>yes</think>\n\n", "stop", {}),
    ("<thinking>no", "length", {}),
    ("<think>a</think> <think>no", "length", {}),
    ("◁think▷yes", "length", {}),
    ("<|channel|>analysis<|message|>yes", "length", {}),
    ([], "length", {}),
]


@pytest.mark.parametrize(("content", "reason", "message"), SILENT)
def test_a_reply_without_an_answer_is_typed_and_in_no_mean(
    content: Any, reason: str, message: dict[str, Any], server: Server, pope: Path, tmp_path: Path
) -> None:
    summary, rows = run(server, pope, tmp_path / "out", content, reason, **message)
    silent = [row for row in rows if row["outcome"] == "unanswered"]
    assert summary["outcomes"] == {"ok": len(rows) - len(silent), "unanswered": len(silent)} and silent
    assert all(row["score"] is row["strict_score"] is row["completion"] is None for row in silent)
    assert all("--max-new-tokens" in row["why"] for row in silent)
    accuracy = next(metric for metric in summary["metrics"] if metric["name"] == "accuracy")
    assert (accuracy["scored"], accuracy["total"]) == (len(rows) - len(silent), len(rows))
    assert len(server.asked) == len(rows)  # none is asked again


def test_a_model_that_answers_nothing_ends_with_a_hint_at_the_budget(
    server: Server, pope: Path, tmp_path: Path
) -> None:
    server.say = lambda body, n: (200, {}, chat("", "length"))
    with pytest.raises(DataError, match="none of 12 items was answered") as error:
        run_evaluation(TABLE, server.backend(), tmp_path, Options(), data=pope)
    assert "--max-new-tokens" in str(error.value.fix) and len(rows_of(tmp_path)) == 12


PARTS = [
    ([{"type": "text", "text": "No"}], "No"),
    ([{"type": "text", "text": "N"}, {"type": "text", "text": "o"}], "No"),
    ([{"type": "reasoning", "text": "Yes?"}, {"type": "output_text", "text": "No"}], "No"),
]


@pytest.mark.parametrize(("content", "text"), PARTS)
def test_text_parts_are_joined(content: Any, text: str, server: Server, pope: Path, tmp_path: Path) -> None:
    _, rows = run(server, pope, tmp_path / "out", content, "stop")
    assert {row["completion"] for row in rows} == {text, "yes"} and {row["outcome"] for row in rows} == {"ok"}


def test_a_message_without_content_is_no_answer(server: Server, pope: Path, tmp_path: Path) -> None:
    bare = [
        {"choices": [{"finish_reason": "stop", "message": {"role": "assistant"}}]},
        {"choices": [{"index": 0, "finish_reason": "length"}]},
    ]
    server.say = lambda body, n: (200, {}, chat() if n == 1 else json.dumps(bare[n % 2]).encode())
    summary = run_evaluation(TABLE, server.backend(concurrency=1), tmp_path, Options(), data=pope)
    assert summary is not None and summary["outcomes"] == {"ok": 1, "unanswered": 11} and len(server.asked) == 12


def test_the_strict_column_reads_what_follows_the_reasoning(pope: Path, tmp_path: Path) -> None:
    items = load_items(TABLE, pope)
    forms = [
        "<think>\nIs there one? No, wait, I see it.\n</think>\n\n{}",
        "Looking at it, no doubt there is one, yes.\n</think>\n\n{}",
        "<think>yes</think><think>no</think> **{}**.",
        "<think>yes, no</think><answer>{}</answer>",
        "◁think▷no, yes◁/think▷{}",
        "<|channel|>analysis<|message|>yes, no<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
    ]
    replies = [forms[i % len(forms)].format(item.gold.title()) for i, item in enumerate(items)]
    replies[0] = "<think>\nOkay, there is no way to"
    file = tmp_path / "p.jsonl"
    lines = [json.dumps({"id": item.id, "prediction": reply}) for item, reply in zip(items, replies, strict=True)]
    file.write_text("\n".join(lines))
    summary = score_predictions(TABLE, [file], tmp_path / "out", data=pope, name="x")
    rows = rows_of(tmp_path / "out")
    assert [row["strict_score"] for row in rows] == [None, *[1.0] * 11]
    assert rows[0]["outcome"] == "unanswered" and rows[0]["score"] is None
    assert summary["imported"]["problems"]["no answer"]["n"] == 1
    assert summary["strict_metrics"][1]["value"] == 100 and summary["unreadable_answers"] == 0


def test_unreadable_replies_are_counted(pope: Path, tmp_path: Path) -> None:
    items = load_items(TABLE, pope)
    file = tmp_path / "p.jsonl"
    said = ["maybe", "yes and no", "", *["yes"] * 9]
    lines = [json.dumps({"id": item.id, "prediction": reply}) for item, reply in zip(items, said, strict=True)]
    file.write_text("\n".join(lines))
    summary = score_predictions(TABLE, [file], tmp_path / "out", data=pope, name="x")
    assert (summary["unreadable_answers"], summary["empty_answers"]) == (2, 1)


def test_the_token_budget_can_be_raised_and_is_named(server: Server, pope: Path, tmp_path: Path) -> None:
    options = Options(max_new_tokens=4096)
    assert options.folder == "tokens4096" and options.variant["max_new_tokens"] == 4096
    out = tmp_path / options.folder
    assert "max_new_tokens" not in Options().variant
    run_evaluation(TABLE, server.backend(), out, options, data=pope)
    assert {body["max_tokens"] for body in server.asked} == {4096}
    usual = {row["key"] for row in rows_of(out)}
    run_evaluation(TABLE, server.backend(), tmp_path / "default", Options(), data=pope)
    assert usual.isdisjoint(row["key"] for row in rows_of(tmp_path / "default"))
    plain, raised = sorted(find_evaluations([tmp_path]), key=lambda e: e.folder.name)
    assert "4,096 new tokens" in " ".join(caveats_of(raised)) and "4096" in raised.label
    assert "new tokens" not in " ".join(caveats_of(plain))


def test_what_is_an_answer() -> None:
    assert why_unanswered("") == "" and why_unanswered("", finished=False) != ""
    assert why_unanswered("x", finished=False) == "" and why_unanswered(None) != ""
    assert why_unanswered("a < b and <b>think</b>") == ""
    assert answer_text("<think>no</think>yes") == "yes"
    assert Reply("x", True).finished
