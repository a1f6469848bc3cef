"""`vlm diff`: which samples moved, whether by chance, and what caused it."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vlm.cli.commands.diff import diff
from vlm.core.errors import DataError
from vlm.eval.saved.diff import KINDS, compare_evaluations, find_pairs, mcnemar

MODEL = {"weights": "w1", "scorers": "s1", "decode": {"stride": None, "image_rule": {"max_tiles": 6}}}


@dataclass
class Eval:
    """One evaluation to write: the score of each item, or None."""

    scores: list[float | None]
    provenance: dict[str, Any] = field(default_factory=lambda: dict(MODEL))
    benchmark: str = "POPE"
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    first: int = 0

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        lines = []
        for i, score in enumerate(self.scores, self.first):
            row = {
                "benchmark": self.benchmark,
                "id": f"{i}",
                "group": "one" if i % 2 else "two",
                "outcome": "error" if score is None else "ok",
                "prompt": f"question {i}",
                "images": [f"/data/{i}.png"],
                "completion": None if score is None else f"answer {score}",
                "extracted": "",
                "score": score,
                "strict_score": score,
                "why": "",
                "gold": "yes",
                "meta": {},
                "key": f"{self.provenance}{i}",
            }
            lines.append(json.dumps(row | self.rows.get(i, {})))
        (folder / "results.jsonl").write_text("\n".join(lines) + "\n")
        metric = {"name": "F1", "value": 50.0, "low": None, "high": None, "scored": 1, "total": 1, "note": ""}
        summary = {
            "benchmark": self.benchmark,
            "title": self.benchmark,
            "model": "m",
            "variant": {},
            "metrics": [metric],
            "strict_metrics": [],
            "published": [],
            "outcomes": {"ok": len(self.scores)},
            "data": {"mini": True},
            "provenance": self.provenance,
            **self.summary,
        }
        (folder / "summary.json").write_text(json.dumps(summary))
        return folder


def compared(tmp_path: Path, a: Eval, b: Eval) -> dict[str, Any]:
    return compare_evaluations(find_pairs(a.write(tmp_path / "a"), b.write(tmp_path / "b"))[0])


def causes(found: dict[str, Any]) -> dict[str, list[str]]:
    return {sample["id"]: sample["causes"] for sample in found["moved"]}


def test_moves_are_sorted_into_kinds_and_add_up(tmp_path: Path) -> None:
    a = Eval([1, 1, 0, 0, None, 1, None], rows={3: {"completion": "other"}})
    b = Eval([1, 0, 1, 0, 1, None, None], provenance={**MODEL, "weights": "w2"})
    found = compared(tmp_path, a, b)
    kinds = {sample["id"]: sample["kind"] for sample in found["moved"]}
    assert kinds == {"1": "lost", "2": "gained", "3": "changed", "4": "answered", "5": "unanswered"}
    assert found["kinds"]["same"] == 2 and sum(found["kinds"].values()) == 7 and set(found["kinds"]) == set(KINDS)
    assert found["causes"] == {"model": 5}
    change = found["change"]
    assert (change["items"], change["before"], change["after"], change["difference"]) == (4, 50, 50, 0)
    assert found["groups"].keys() == {"one", "two"} and found["items"] == {"both": 7, "a alone": 0, "b alone": 0}


@pytest.mark.parametrize(
    ("one", "other", "row", "expected"),
    [
        ({}, {"weights": "w2"}, {}, ["model"]),
        ({}, {"decode": {"stride": 64, "image_rule": {"max_tiles": 6}}}, {}, ["decode"]),
        ({}, {"weights": "w2", "decode": {}}, {}, ["model", "decode"]),
        ({}, {}, {"prompt": "another question"}, ["prompt"]),
        ({}, {}, {"images": ["/elsewhere/other.png"]}, ["data"]),
        ({}, {}, {"key": "another"}, ["media or limits"]),
        ({}, {}, {}, ["chance"]),
        ({}, {"scorers": "s2"}, {"completion": "answer 0"}, ["scorer"]),
        ({}, {}, {"completion": "answer 0", "gold": "no"}, ["data"]),
        ({}, {}, {"completion": "answer 0", "judge": {"kind": "judged", "text": "1.0"}}, ["judge"]),
        ({}, {"weights": "w2", "scorers": "s2"}, {}, ["model", "scorer"]),
    ],
)
def test_the_cause_of_a_move_is_told(one: dict, other: dict, row: dict, expected: list, tmp_path: Path) -> None:
    a, b = Eval([0, 1], {**MODEL, **one}), Eval([1, 1], {**MODEL, **other})
    b.rows = {0: {"images": ["/moved/here/0.png"], "key": f"{a.provenance}0", **row}}  # another folder is no other data
    found = compared(tmp_path, a, b)
    assert causes(found) == {"0": expected}
    if "decode" in expected:
        assert "stride" in found["differences"]["decode"] or "image_rule.max_tiles" in found["differences"]["decode"]


def test_imported_predictions_have_no_known_model(tmp_path: Path) -> None:
    files = {"imported": {"files": [{"file": "pope.json", "sha256": "0"}]}}
    found = compared(tmp_path, Eval([0]), Eval([1], {**MODEL, "weights": "x", "decode": {}}, summary=files))
    assert causes(found) == {"0": ["imported"]} and "model" not in found["differences"]


def test_mcnemar_is_the_fair_coin() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 5) == 1
    for gained, lost in ((1, 7), (0, 10), (30, 50)):
        n, rarer = gained + lost, min(gained, lost)
        exact = min(1.0, 2 * sum(math.comb(n, k) for k in range(rarer + 1)) / 2**n)
        assert mcnemar(gained, lost) == pytest.approx(exact, rel=1e-9) == mcnemar(lost, gained)


def test_a_real_change_is_found_and_chance_is_not(tmp_path: Path) -> None:
    change = compared(tmp_path / "1", Eval([0.0] * 20 + [1.0] * 20), Eval([1.0] * 15 + [0.0] * 5 + [1.0] * 20))[
        "change"
    ]
    assert change["test"].startswith("McNemar") and change["p"] < 0.001
    assert 0 < change["low"] < change["difference"] == 37.5 < change["high"]
    change = compared(tmp_path / "2", Eval([0.0, 1.0] * 20), Eval([1.0, 0.0] * 3 + [0.0, 1.0] * 17))["change"]
    assert change["p"] == 1 and change["low"] < 0 < change["high"]


def test_partial_scores_and_shared_images_use_a_bootstrap_over_clusters(tmp_path: Path) -> None:
    shared = {i: {"meta": {"cluster": f"{i // 10}"}} for i in range(40)}
    a, b = Eval([0.0] * 40, rows=shared), Eval([1.0] * 10 + [0.0] * 30, rows=shared)
    for i in range(40):  # ten gained items of one image are one observation
        b.rows[i] = shared[i]
    change = compared(tmp_path / "1", a, b)["change"]
    assert change["test"].startswith("paired bootstrap") and change["p"] > 0.05
    half = compared(tmp_path / "2", Eval([0.25] * 30), Eval([0.5] * 15 + [0.75] * 15))["change"]
    assert half["test"].startswith("paired bootstrap") and half["p"] < 0.01 and half["difference"] == 37.5


def test_other_benchmarks_other_items_and_empty_folders_are_errors(tmp_path: Path) -> None:
    a = Eval([0, 1]).write(tmp_path / "a")
    for name, other, message in (
        ("b", Eval([0, 1], benchmark="MME"), "different benchmarks: POPE .* in A, MME"),
        ("c", Eval([0, 1], first=9), "no item in common: ids 0, 1 … against 9, 10"),
    ):
        with pytest.raises(DataError, match=message):
            [compare_evaluations(pair) for pair in find_pairs(a, other.write(tmp_path / name))]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no evaluation below"):
        find_pairs(a, tmp_path / "empty")
    with pytest.raises(DataError, match="no such"):
        find_pairs(a, tmp_path / "missing")


def test_runs_are_paired_by_benchmark_and_variant(tmp_path: Path) -> None:
    for run in ("a", "b"):
        Eval([0]).write(tmp_path / run / "m" / "POPE" / "default")
        Eval([0]).write(tmp_path / run / "m" / "POPE" / "stride64")
    Eval([0], benchmark="MME").write(tmp_path / "a" / "m" / "MME" / "default")
    Eval([0], benchmark="MME").write(tmp_path / "b" / "m" / "MME" / "stride1")
    pairs = find_pairs(tmp_path / "a", tmp_path / "b")
    names = [[f"{e.folder.parent.name}/{e.folder.name}" for e in pair] for pair in pairs]
    assert sorted(names) == [
        ["MME/default", "MME/stride1"],
        ["POPE/default", "POPE/default"],
        ["POPE/stride64", "POPE/stride64"],
    ]


def test_the_command_prints_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = Eval([0, 1, None], first=4).write(tmp_path / "a")
    b = Eval([1, 1, 1], {**MODEL, "decode": {"stride": 64}}, first=4).write(tmp_path / "b")
    diff(a, b)
    shown = capsys.readouterr().out
    assert "gained 1" in shown and "caused by decode 2" in shown and "None → 64" in shown and "McNemar" in shown
    diff(a, b, as_json=True)
    [found] = json.loads(capsys.readouterr().out)
    assert found["kinds"] == {"gained": 1, "same": 1, "answered": 1}
