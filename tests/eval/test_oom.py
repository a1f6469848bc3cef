"""Faults at known items come out typed, counted and shown, never as an answer; their neighbors keep theirs."""

import json
import weakref
from pathlib import Path

import pytest

from support import fake_backend as fake
from vlm.core.errors import DataError
from vlm.core.sample.records import text
from vlm.eval.backends.base import Refused
from vlm.eval.loaders import Item
from vlm.eval.loaders.common import Items
from vlm.eval.run.batches import ask
from vlm.eval.run.plan import Task
from vlm.eval.run.runner import Options, run_evaluation


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    fake.install(monkeypatch.setattr)


class Faulty(fake.FakeBackend):
    """Raises (or replies) what `faults` holds for an id; `sizes` are the batches tried while one fails."""

    def __init__(self, faults, **settings):
        super().__init__(**settings)
        self.faults, self.sizes = faults, []

    def answer(self, encoded, **limits):
        self.sizes.append(len(encoded))
        replies = super().answer(encoded, **limits)
        for number, (id_, _) in enumerate(encoded):
            fault = self.faults.get(id_)
            if isinstance(fault, BaseException):
                raise fault
            if id_ in self.faults:
                replies[number] = fault
        return [reply for reply in replies if reply != "nothing"]


def evaluate(tmp_path, out="out", backend=None, **options):
    settings = Options(**{"batch_size": 4, **options})
    return run_evaluation(
        fake.benchmark(), backend or fake.FakeBackend(), tmp_path / out, settings, data=tmp_path / "data"
    )


def rows(folder):
    return {row["id"]: row for row in map(json.loads, (folder / "results.jsonl").read_text().splitlines())}


def out_of_memory(message="CUDA out of memory. Tried to allocate 2.00 GiB"):
    return RuntimeError(message)


EXCEPTIONS = {
    "id0": (out_of_memory(), "oom", "out of memory when run alone"),
    "id5": (MemoryError(), "oom", "out of memory when run alone"),
    "id7": (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "oom", "out of memory when run alone"),
    "id8": (RuntimeError("shape mismatch"), "error", "RuntimeError: shape mismatch"),
    "id13": (IndexError("index out of range in self"), "error", "IndexError: index out of range in self"),
    "id14": (KeyError("pixel_values"), "error", "KeyError: 'pixel_values'"),
    "id20": (ZeroDivisionError("division by zero"), "error", "ZeroDivisionError: division by zero"),
    "id21": (AssertionError("no pixels"), "error", "AssertionError: no pixels"),
    "id33": (TypeError("not a tensor"), "error", "TypeError: not a tensor"),
    "id39": (Refused("the server's filter"), "refused", "the server's filter"),
}


@pytest.mark.parametrize("batch_size", [1, 4, 40])
def test_every_injected_fault_is_typed_at_its_id_and_its_neighbors_keep_their_answers(tmp_path, batch_size):
    backend = Faulty({id_: error for id_, (error, _, _) in EXCEPTIONS.items()})
    summary = evaluate(tmp_path, backend=backend, batch_size=batch_size)
    evaluate(tmp_path, "clean")
    found, clean = rows(tmp_path / "out"), rows(tmp_path / "clean")
    for id_, row in found.items():
        if id_ in EXCEPTIONS:
            assert (row["outcome"], row["why"]) == EXCEPTIONS[id_][1:]
            assert row["completion"] is row["score"] is row["strict_score"] is None
        else:
            assert row == clean[id_]
    counts = summary["outcomes"]
    assert (counts["oom"], counts["error"], counts["refused"]) == (3, 6, 1)
    metric = summary["metrics"][0]
    assert (metric["scored"], metric["total"]) == (fake.N - len(EXCEPTIONS), fake.N)
    assert backend.recovered > 0


def test_out_of_memory_is_retried_with_half_the_batch_down_to_one():
    tasks = [
        Task(Item(f"id{i}", [], None, ""), str(i), 1.0, {"max_new_tokens": 1, "min_new_tokens": 1}) for i in range(8)
    ]
    backend = Faulty({"id5": out_of_memory()})
    outcomes = ask(backend, [(task, (task.item.id, "")) for task in tasks])
    assert backend.sizes == [8, 4, 4, 2, 1, 1, 2]
    assert [o.id for o in outcomes] == [f"id{i}" for i in range(8)]
    assert [o.id for o in outcomes if o.outcome == "oom"] == ["id5"] and backend.recovered == 4


def test_memory_of_the_failed_attempt_is_free_before_the_next():
    class Tensor:
        pass

    class Hungry(fake.FakeBackend):
        held = None

        def answer(self, encoded, **limits):
            tensor = Tensor()
            if len(encoded) > 1:
                self.held = weakref.ref(tensor)
                raise out_of_memory()
            return super().answer(encoded, **limits)

        def recover(self):
            assert self.held() is None, "the exception still holds the frames of the failed attempt"
            super().recover()

    task = Task(Item("id1", [], None, ""), "k", 1.0, {"max_new_tokens": 1, "min_new_tokens": 1})
    backend = Hungry()
    assert len(ask(backend, [(task, ("id1", ""))] * 2)) == 2
    assert backend.recovered == 1


def test_a_model_that_returns_nothing_is_an_error_of_the_item_that_got_nothing(tmp_path):
    said_none = fake.Reply(None, True)
    summary = evaluate(tmp_path, backend=Faulty({"id3": "nothing", "id4": said_none}))
    found = rows(tmp_path / "out")
    assert summary["outcomes"]["error"] == 2
    assert found["id3"]["why"] == "ValueError: the model returned 0 replies to 1 questions"
    assert found["id4"]["why"] == "ValueError: the model returned None instead of a text"


def test_a_model_that_never_returns_anything_ends_with_an_error_that_says_so(tmp_path):
    class Silent(fake.FakeBackend):
        def answer(self, encoded, **limits):
            return None

    with pytest.raises(DataError, match=r"none of 40 items was answered.*0 replies to 1 questions"):
        evaluate(tmp_path, backend=Silent())


def test_empty_answers_are_counted_and_said_and_score_nothing(tmp_path):
    summary = evaluate(tmp_path, backend=Faulty({"id3": fake.Reply("", True), "id4": fake.Reply(" \n", True)}))
    found = rows(tmp_path / "out")
    assert summary["empty_answers"] == 2
    assert all(found[id_]["why"].startswith("the model returned an empty answer · ") for id_ in ("id3", "id4"))
    assert found["id3"]["score"] == 0
    evaluate(tmp_path, "clean")
    assert json.loads((tmp_path / "clean" / "summary.json").read_text())["empty_answers"] == 0


def test_a_row_without_an_image_is_kept_never_asked_and_counted(tmp_path, monkeypatch):
    items = Items()
    for item in fake.make_items(tmp_path / "data"):
        shown = [] if item.id == "id6" else [p["path"] for p in item.messages[0]["content"] if p["type"] == "image"]
        if not shown:
            item = Item(item.id, [{"role": "user", "content": [text("no picture")]}], item.gold, item.group)
        items.add(item, where=f"data/questions.jsonl:{item.id}", images=map(Path, shown))
    monkeypatch.setattr("vlm.eval.run.runner.load_items", lambda *_, **__: items.items)
    backend = fake.FakeBackend()
    summary = evaluate(tmp_path, backend=backend)
    row = rows(tmp_path / "out")["id6"]
    assert (row["outcome"], row["why"], row["score"]) == ("error", "questions.jsonl:id6: the row has no image", None)
    assert summary["outcomes"]["error"] == 1 and summary["metrics"][0]["scored"] == fake.N - 1
    assert "id6" not in {id_ for batch in backend.asked for id_ in batch}


def test_a_fault_of_ours_stops_the_run_and_keeps_what_is_answered(tmp_path):
    class Broken(fake.FakeBackend):
        def answer(self, encoded, **limits):
            if len(self.asked) == 3:
                raise AttributeError("a bug")
            return super().answer(encoded, **limits)

    with pytest.raises(AttributeError, match="a bug"):
        evaluate(tmp_path, backend=Broken())
    backend = fake.FakeBackend()
    evaluate(tmp_path, backend=backend)
    assert 0 < sum(map(len, backend.asked)) < fake.N
