"""A new file in the folder of scorers, loaders or miniatures is an entry; two files cannot define the same one."""

from pathlib import Path

import pytest

from vlm.eval import loaders, mini, scorers
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import Item
from vlm.eval.registry import collect
from vlm.eval.scorers import Scorer

SCORER = """
from vlm.eval.scorers.scorer import Scorer, takes

def starts_with(reply, gold, *, compat="upstream"):
    return float(reply.startswith(gold))

SCORERS = {"starts_with": Scorer(starts_with, takes("reply", "gold"))}
"""


@pytest.mark.parametrize(("package", "name"), [(scorers, "SCORERS"), (loaders, "LOADERS"), (mini, "MINIATURES")])
def test_an_entry_is_in_one_file(package, name: str) -> None:
    found = collect(package.__name__, name)
    assert found == getattr(package, name) and len(found) > 15


def test_a_new_scorer_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "starting.py").write_text(SCORER)
    monkeypatch.setattr(scorers, "__path__", [*scorers.__path__, str(tmp_path)])
    found = collect("vlm.eval.scorers", "SCORERS")
    assert found.keys() - scorers.SCORERS.keys() == {"starts_with"}
    reading = found["starts_with"].read(Item("1", [], "cat", ""), " cats")
    assert (reading.extracted, reading.value) == ("cats", 0) and found["starts_with"]("cats", "cat") == 1


def test_two_files_cannot_define_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zz_twice.py").write_text("SCORERS = {'anls': None}")
    monkeypatch.setattr(scorers, "__path__", [*scorers.__path__, str(tmp_path)])
    with pytest.raises(ValueError, match=r"zz_twice.*anls a second time"):
        collect("vlm.eval.scorers", "SCORERS")


def test_a_scorer_without_inputs_is_for_comparison_only() -> None:
    table = load_benchmark("POPE")
    with pytest.raises(TypeError, match="pope_metrics"):
        scorers.SCORERS["pope_metrics"].read(Item("1", [], "yes", ""), "yes")
    assert scorers.SCORERS[table.scorer_of("random")].inputs is not None


def test_a_judge_replaces_the_input_that_the_scorer_names_or_the_answer() -> None:
    def half(reply: str, *, compat: str = "upstream") -> float:
        return float(reply) / 2

    item = Item("1", [], "B", "", {"options": {"A": "cat", "B": "dog"}})
    graded = Scorer(half, lambda item, completion: {"reply": completion}, judged="reply")
    assert graded.read(item, "0.4", judged="1").value == 0.5 and graded.read(item, "0.4").value == 0.2
    infer = scorers.SCORERS["vlmevalkit_can_infer"]
    assert infer.read(item, "who knows", judged="B") == ("B", 1) and infer.read(item, "who knows") == ("", 0)
