"""Judges against a real HTTP server: grades, extraction, options, the cache, retries, and every way of failing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.judge_server import JudgeServer as Server
from support.judge_server import math, vet
from vlm.cli.backends import make_judge as _judge
from vlm.cli.options import JudgeOptions
from vlm.core.errors import ConfigError
from vlm.eval.backends.judge import PATIENCE, Judge, Verdict, judge_all, judge_reply, judge_summary
from vlm.eval.benchmark import Benchmark, JudgeRule, load_benchmark
from vlm.eval.loaders import Item, load_items
from vlm.eval.mini import make_mini
from vlm.eval.run.runner import Options, run_evaluation
from vlm.eval.run.score import score_item

MMVET, MATH = load_benchmark("MM-Vet"), load_benchmark("MathVista")


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


def test_a_grade_is_asked_once_sent_with_the_key_and_kept_by_content(server: Server, tmp_path: Path) -> None:
    judge = server.judge(tmp_path, key="secret")
    verdict = judge_reply(MMVET, vet(), "A circle,\nit is red.", judge)
    assert verdict == Verdict("judged", "0.8") and server.headers == ["Bearer secret"]
    assert server.asked[0]["path"] == "/v1/chat/completions" and server.asked[0]["model"] == "judge-1"
    prompt = server.asked[0]["messages"][0]["content"]
    assert prompt.startswith(MMVET.judge.instruction)
    assert prompt.endswith("\nWhat is in the picture? | a red circle | A circle, it is red. | ")
    server.replies = [(500, "gone")]
    assert judge_reply(MMVET, vet(), "A circle,\nit is red.", server.judge(tmp_path)) == verdict
    assert len(server.asked) == 1
    assert "secret" not in "".join(path.read_text() for path in tmp_path.iterdir())
    server.replies = [(200, "0.1")]
    assert judge_reply(MMVET, vet(), "Another reply", server.judge(tmp_path)).text == "0.1"
    other = Judge(server.url, "judge-2", cache=tmp_path, wait=0.001)
    assert judge_reply(MMVET, vet(), "Another reply", other).kind == "judged" and len(server.asked) == 3


def test_a_damaged_cache_file_is_asked_again(server: Server, tmp_path: Path) -> None:
    judge_reply(MMVET, vet(), "x", server.judge(tmp_path))
    next(tmp_path.iterdir()).write_text("{")
    assert judge_reply(MMVET, vet(), "x", server.judge(tmp_path)).text == "0.8" and len(server.asked) == 2


def test_a_busy_judge_is_asked_again_and_a_refusing_one_is_not(server: Server, tmp_path: Path) -> None:
    server.replies = [(429, "slow down"), (503, "busy"), (200, "1.0")]
    assert judge_reply(MMVET, vet(), "x", server.judge(tmp_path)) == Verdict("judged", "1.0")
    server.replies, before = [(401, b"bad key")], len(server.asked)
    verdict = judge_reply(MMVET, vet(), "y", server.judge(tmp_path))
    assert (verdict.kind, verdict.detail) == ("down", "HTTP 401: bad key") and len(server.asked) == before + 1


@pytest.mark.parametrize("reply", ["Great answer!", "7", "-0.5", "1.5", "", b"<html>", b'{"choices": []}', None])
def test_nonsense_is_typed_asked_again_and_not_kept(reply: Any, server: Server, tmp_path: Path) -> None:
    server.replies = [(200, reply)]
    verdict = judge_reply(MMVET, vet(), "x", server.judge(tmp_path, attempts=2))
    assert verdict.kind == "nonsense" and verdict.detail and len(server.asked) == 2
    assert not list(tmp_path.iterdir())
    assert score_item(MMVET, vet(), "x", verdict=verdict).value is None
    server.replies = [(200, "0.5 because it is half right")]
    assert judge_reply(MMVET, vet(), "x", server.judge(tmp_path)).text == "0.5"


def test_a_dead_judge_is_given_up_after_some_items(tmp_path: Path) -> None:
    server = Server()
    server.http.shutdown()
    server.http.server_close()
    judge = server.judge(tmp_path, attempts=2, workers=1)
    verdicts = judge_all(MMVET, [(vet(), f"reply {i}") for i in range(6)] + [(vet(), None)], judge)
    assert [v.kind for v in verdicts[:6] if v] == ["down"] * 6 and verdicts[6] is None
    assert "ConnectError" in verdicts[0].detail and verdicts[PATIENCE].detail.startswith("not sent")
    about = judge_summary(MMVET, verdicts, judge)
    assert about["verdicts"] == {"down": 6} and "6 of 6 replies not scored" in about["note"]


def test_without_a_judge_there_is_no_grade_and_mathvista_names_its_rule() -> None:
    verdict = judge_reply(MMVET, vet(), "a red circle", None)
    assert verdict.kind == "not judged"
    for given in (verdict, None):
        score = score_item(MMVET, vet(), "a red circle", "upstream", given)
        assert score.value is None and score.why.startswith("not judged")
    found = judge_reply(MATH, math(["Ada", "Bo"]), "Answer: Bo", None)
    assert found.kind == "rule" and "quick extract" in found.detail
    score = score_item(MATH, math(["Ada", "Bo"]), "Answer: Bo", "upstream", found)
    assert score.value == 1 and "quick extract" in score.why
    with pytest.raises(ConfigError, match="has no judge"):
        judge_reply(load_benchmark("POPE"), vet(), "x", None)
    with pytest.raises(ConfigError, match="half a judge"):
        _judge(JudgeOptions("http://localhost:1/v1", None, "VLM_JUDGE_KEY"), Path())
    with pytest.raises(ConfigError, match="judge endpoint 'localhost:1'"):
        Judge("localhost:1", "m", cache=Path())


def test_a_graded_reply_has_the_judges_score() -> None:
    for text, value in (("0.8", 0.8), ("1.0", 1), ("0.0", 0)):
        for compat in ("upstream", "fixed"):
            assert score_item(MMVET, vet(), "x", compat, Verdict("judged", text)).value == value
    assert score_item(MMVET, vet(), " ", "fixed", Verdict("judged", "1.0")).value == 0


@pytest.mark.parametrize(
    ("item", "reply", "said", "kind", "value"),
    [
        (math(["Ada", "Bo"]), "The second bar.", "B", "judged", 1),
        (math(["Ada", "Bo"]), "The second bar.", "(B) Bo", "judged", 1),
        (math(["Ada", "Bo"]), "The second bar.", "the second", "nonsense", None),
        (math(["Ada", "Bo"]), "Bo", "A", "rule", 1),  # a bare option needs no judge
        (math(form="integer", gold="14"), "It is fourteen.", "14", "judged", 1),
        (math(form="integer", gold="14"), "It is fourteen.", "fourteen", "nonsense", None),
        (math(form="integer", gold="14"), "I do not know.", "None", "judged", 0),
        (math(form="integer", gold="14"), "14", "3", "rule", 1),
        (math(form="float", gold="1.5"), "about 1.49", "1.49", "judged", 1),
        (math(form="list", gold="[1, 2]"), "1 and 2", "[1, 2]", "judged", 1),
        (math(form="integer", gold="14"), "", "14", "rule", 0),
    ],
)
def test_extraction(item: Item, reply: str, said: str, kind: str, value: Any, server: Server, tmp_path: Path) -> None:
    server.replies = [(200, said)]
    verdict = judge_reply(MATH, item, reply, server.judge(tmp_path, attempts=1))
    assert verdict.kind == kind
    assert score_item(MATH, item, reply, "upstream", verdict).value == value
    if server.asked:
        prompt = server.asked[0]["messages"][0]["content"]
        assert prompt.endswith(f"\nWhich bar?\n\nResponse: {reply}\n\nExtracted answer: ")


@pytest.mark.parametrize(
    ("reply", "said", "kind", "value"),
    [
        ("a puppy", "B", "judged", 1),
        ("a puppy", "Z", "judged", 0),
        ("a puppy", "Q", "nonsense", None),
        ("B.", "A", "rule", 1),
    ],
)
def test_choice_of_an_option(reply: str, said: str, kind: str, value: Any, server: Server, tmp_path: Path) -> None:
    rule = JudgeRule(kind="choose", instruction="Match.", fallback="exact matching", source="test")
    table: Benchmark = MMVET.model_copy(update={"judge": rule, "scorer": "vlmevalkit_can_infer"})
    message = {"role": "user", "content": [{"type": "text", "text": "What is it?"}]}
    item = Item("1", [message], "B", "all", {"options": {"A": "cat", "B": "dog"}})
    server.replies = [(200, said)]
    verdict = judge_reply(table, item, reply, server.judge(tmp_path, attempts=1))
    assert verdict.kind == kind and score_item(table, item, reply, "upstream", verdict).value == value


class Echo:
    """A backend whose every reply is the same."""

    family, fingerprint, settings = "fake", "w", {}

    def count_tokens(self, value: str) -> int:
        return 1

    def prompt(self, messages: list) -> str:
        return "".join(p.get("text", "<image>") for m in messages for p in m["content"])

    def cost(self, messages: list) -> float:
        return 1.0

    def encode(self, item_id: str, messages: list) -> str:
        return item_id

    def answer(self, encoded: list, *, max_new_tokens: int, min_new_tokens: int) -> list[Any]:
        return [type("Reply", (), {"text": "a red circle", "finished": True})() for _ in encoded]

    def recover(self) -> None:
        pass


def test_a_run_counts_and_shows_its_verdicts(server: Server, tmp_path: Path) -> None:
    data, out = make_mini("MM-Vet", tmp_path / "m", n=6), tmp_path / "out"
    without = run_evaluation(MMVET, Echo(), out, Options(), data=data)
    assert without["metrics"][0]["value"] is None and without["metrics"][0]["note"].startswith(
        "not judged: give a judge"
    )
    assert without["judge"]["verdicts"] == {"not judged": 6}
    server.replies = [(200, "0.5")] * 4 + [(200, "?")]
    judge = server.judge(tmp_path / "cache", attempts=1, workers=1)
    judged = run_evaluation(MMVET, Echo(), out, Options(), data=data, judge=judge)
    head = judged["metrics"][0]
    assert (head["name"], head["value"], head["scored"], head["total"]) == ("grade", 50, 4, 6)
    assert judged["judge"]["verdicts"] == {"judged": 4, "nonsense": 2} and judged["judge"]["model"] == "judge-1"
    assert "2 of 6 replies not scored" in head["note"]
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["judge"]["kind"] for row in rows] == ["judged"] * 4 + ["nonsense"] * 2
    assert rows[4]["score"] is None and rows[4]["why"].startswith("nonsense: the judge said '?'")
    server.replies, before = [(200, "1.0")], len(server.asked)
    again = run_evaluation(MMVET, Echo(), out, Options(), data=data, judge=server.judge(tmp_path / "cache"))
    assert len(server.asked) == before + 2  # only what is not yet judged
    assert again["metrics"][0]["scored"] == 6 and again["judge"]["note"] == ""
    assert load_items(MMVET, data)[0].gold
