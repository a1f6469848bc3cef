"""`run_infer`: order, outcomes, resuming after kill -9 at random moments, and files that it must not overwrite."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.fake_backend import FakeBackend, make_items
from vlm.core.errors import ConfigError, DataError, LockedError
from vlm.core.home import locked
from vlm.core.sample.records import text
from vlm.eval.loaders import Item
from vlm.eval.run.infer import run_infer

SCRIPT = """
import sys
from pathlib import Path
from support.fake_backend import FakeBackend, make_items
from vlm.eval.run.infer import run_infer

class Noting(FakeBackend):
    def answer(self, encoded, **limits):
        replies = super().answer(encoded, **limits)
        with open(sys.argv[3], "a") as noted:
            noted.writelines(item_id + "\\n" for item_id, _ in encoded)
        return replies

print("started", flush=True)
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
run_infer(make_items(folder), Noting(seconds=0.02), out, max_new_tokens=4, batch_size=2)
"""


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def infer(items: list[Item], out: Path, backend: FakeBackend | None = None, **settings):
    return run_infer(items, backend or FakeBackend(), out, max_new_tokens=4, **settings)


def test_replies_are_in_input_order_with_their_outcomes_and_the_counts_close(tmp_path: Path) -> None:
    items = make_items(tmp_path / "data")
    items[5] = Item("id5", [{"role": "user", "content": [text("")]}], None, "all", fault="own.jsonl:6: not JSON")
    backend = FakeBackend(
        oom_alone=frozenset({"id7"}),
        broken=frozenset({"id9"}),
        too_long=frozenset({"id11"}),
        unreadable=frozenset({"id2"}),
    )
    counts = infer(items, tmp_path / "out.jsonl", backend)
    found = rows(tmp_path / "out.jsonl")
    assert [row["id"] for row in found] == [item.id for item in items] and counts.total() == len(items)
    kinds = {row["id"]: row["outcome"] for row in found}
    assert [kinds[i] for i in ("id5", "id7", "id9", "id11", "id2")] == ["error", "oom", "error", "refused", "error"]
    assert {kinds[i] for i in kinds} == {"ok", "length", "error", "oom", "refused"}
    for row in found:
        assert (row["reply"] is None) == (row["outcome"] not in ("ok", "length"))
        assert bool(row["why"]) == (row["outcome"] != "ok")
    assert found[5]["why"] == "own.jsonl:6: not JSON" and "9,999 tokens" in found[11]["why"]
    assert not list(tmp_path.glob(".out*"))


def test_a_second_run_asks_nothing_and_one_with_more_questions_only_those(tmp_path: Path) -> None:
    items, out, backend = make_items(tmp_path / "data"), tmp_path / "out.jsonl", FakeBackend()
    infer(items[:30], out, backend)
    first, backend.asked = out.read_bytes(), []
    infer(items[:30], out, backend)
    assert out.read_bytes() == first and not backend.asked
    infer(items, out, backend)
    assert sorted(i for batch in backend.asked for i in batch) == sorted(item.id for item in items[30:])
    assert out.read_bytes().startswith(first)


def test_equal_questions_are_asked_once_and_all_get_the_reply(tmp_path: Path) -> None:
    message = [{"role": "user", "content": [text("Same?")]}]
    backend = FakeBackend()
    infer([Item(str(i), message, None, "all") for i in range(5)], tmp_path / "out.jsonl", backend)
    assert len(backend.asked) == 1 and len({row["reply"] for row in rows(tmp_path / "out.jsonl")}) == 1


def test_a_reply_without_an_answer_is_kept_as_it_is(tmp_path: Path) -> None:
    class Thinking(FakeBackend):
        def answer(self, encoded, **limits):
            return [type(reply)("<think>so", False) for reply in super().answer(encoded, **limits)]

    infer(make_items(tmp_path / "data")[:2], tmp_path / "out.jsonl", Thinking())
    assert [row["reply"] for row in rows(tmp_path / "out.jsonl")] == ["<think>so"] * 2


def test_what_failed_is_asked_again_on_demand(tmp_path: Path) -> None:
    items, out = make_items(tmp_path / "data")[:6], tmp_path / "out.jsonl"
    infer(items, out, FakeBackend(broken=frozenset({"id3"})))
    infer(items, out)
    assert rows(out)[3]["outcome"] == "error"
    infer(items, out, retry_failed=True)
    assert rows(out)[3]["reply"] in ("yes", "no")


def test_replies_and_files_of_others_are_not_overwritten_unasked(tmp_path: Path) -> None:
    items, out = make_items(tmp_path / "data")[:6], tmp_path / "out.jsonl"
    infer(items, out)
    first = out.read_bytes()
    for again, backend in ((items[:3], FakeBackend()), (items, FakeBackend(fingerprint="weights-2"))):
        with pytest.raises(ConfigError, match=r"(?s)replies that would be lost.*--replace"):
            infer(again, out, backend)
    assert out.read_bytes() == first and not list(tmp_path.glob(".out*"))
    infer(items[:3], out, replace=True)
    assert len(rows(out)) == 3
    for content in (b"precious\n", b'{"id": 1, "question": "?"}\n', b"[1]\n", first[:-40] + b"\n", b"\xff\n"):
        out.write_bytes(content)
        with pytest.raises(ConfigError, match=r"out\.jsonl:\d+ is no reply of `vlm infer`"):
            infer(items, out)
        assert out.read_bytes() == content
    infer(items, out, replace=True)
    assert len(rows(out)) == 6
    with pytest.raises(ConfigError, match="no file to write"):
        infer(items, tmp_path / "data")


def test_nothing_answered_is_an_error_and_the_file_says_why(tmp_path: Path) -> None:
    items, out = make_items(tmp_path / "data")[:2], tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=r"(?s)none of 2 questions was answered.*9,999 tokens"):
        infer(items, out, FakeBackend(too_long=frozenset({"id0", "id1"})))
    assert [row["outcome"] for row in rows(out)] == ["refused", "refused"]
    with pytest.raises(DataError):
        infer([], out)
    with pytest.raises(DataError, match="occur more than once"):
        infer([items[0], items[0]], tmp_path / "new.jsonl")


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    with locked(tmp_path / ".out.jsonl.vlm", "another"), pytest.raises(LockedError, match="another"):
        infer(make_items(tmp_path / "data")[:2], tmp_path / "out.jsonl")


def test_ctrl_c_keeps_what_was_answered(tmp_path: Path) -> None:
    items, out = make_items(tmp_path / "data"), tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        infer(items, out, FakeBackend(interrupt_after=3), batch_size=2)
    assert not out.exists()
    backend = FakeBackend()
    infer(items, out, backend, batch_size=2)
    clean = tmp_path / "clean.jsonl"
    infer(items, clean)
    assert out.read_bytes() == clean.read_bytes()
    assert sum(map(len, backend.asked)) == len(items) - 6


@pytest.mark.timeout(300)
def test_killed_at_any_moment_it_ends_with_the_same_bytes_and_asks_nothing_twice(tmp_path: Path) -> None:
    items = make_items(tmp_path / "data")
    infer(items, tmp_path / "clean.jsonl")
    out, noted, kills = tmp_path / "out.jsonl", tmp_path / "asked", 0
    words = [sys.executable, "-c", SCRIPT, str(tmp_path / "data"), str(out), str(noted)]
    rng = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1], text=True)
        assert process.stdout is not None and process.stdout.readline() == "started\n"
        time.sleep(rng.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert kills >= 2, "the kills came too late to prove anything"
    subprocess.run(words, check=True, capture_output=True, cwd=Path(__file__).parents[1])
    assert out.read_bytes() == (tmp_path / "clean.jsonl").read_bytes()
    asked = noted.read_text().split()
    assert set(asked) == {item.id for item in items}
    assert len(asked) <= len(items) + 2 * kills  # a kill costs at most one batch
    assert not list(tmp_path.glob(".out*"))
