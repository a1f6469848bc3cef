"""Replies to scores to metrics: golden replies, silent failures, and aggregates that cannot be computed."""

import random
from typing import Any

import pytest

from vlm.core.errors import UnknownName
from vlm.eval.benchmark import Benchmark, load_benchmark
from vlm.eval.loaders import Item, load_items
from vlm.eval.mini import make_mini
from vlm.eval.run.score import aggregate, score_item
from vlm.eval.scorers import SCORERS

EASY, POPE, CHART, MILE, NIAH = map(load_benchmark, ("easyVQA", "POPE", "ChartQA", "MileBench", "MM-NIAH"))


def row(item: Item, table: Benchmark, completion: str | None, outcome: str = "ok") -> dict[str, Any]:
    """A row of results.jsonl as the runner writes it."""
    upstream, strict = (score_item(table, item, completion, compat) for compat in ("upstream", "fixed"))
    return {
        "benchmark": table.name,
        "id": item.id,
        "group": item.group,
        "outcome": outcome,
        "completion": completion,
        "extracted": upstream.extracted,
        "score": upstream.value,
        "strict_score": strict.value,
        "gold": item.gold,
        "meta": item.meta,
    }


def item(gold: Any, group: str = "", id_: str = "1", **meta: Any) -> Item:
    return Item(id_, [], gold, group, meta)


def by_name(table: Benchmark, rows: list[dict[str, Any]], compat: Any = "upstream") -> dict[str, Any]:
    metrics = aggregate(table, rows, compat)
    assert len({m.name for m in metrics}) == len(metrics)
    for m in metrics:
        assert (m.value is None) <= bool(m.note) and m.n_scored <= m.n_total
        assert m.value is None or m.low is None or m.low - 1e-9 <= m.value <= m.high + 1e-9
    return {m.name: m for m in metrics}


def golds(table: Benchmark, folder) -> list[dict[str, Any]]:
    items = load_items(table, make_mini(table.name, folder))
    return [row(i, table, chr(65 + i.gold) if isinstance(i.gold, int) else str(i.gold)) for i in items]


# one reply -----------------------------------------------------------------------------------------------------------


def test_an_empty_prediction_is_not_scored_correct() -> None:
    """In fixed mode for every benchmark; where a published rule says so in upstream mode, `why` says it."""
    chosen = {"choice_list": ["x", "y", "z"], "n_images": 2}
    cases = [(EASY, item("yes")), (POPE, item("yes", "random")), (CHART, item("5", "human"))]
    cases += [(MILE, item("z", "TQA", **chosen)), (MILE, item("7", "TextNeedleInAHaystack"))]
    cases += [
        (NIAH, item(0, "retrieval-image", n_choices=4)),
        (NIAH, item([0], "counting-text")),
        (NIAH, item("a", "reasoning-text")),
    ]
    for table, one in cases:
        for empty in ("", " \n"):
            assert score_item(table, one, empty, "fixed").value == 0, (table.name, one)
    lucky = [score_item(table, one, "") for table, one in cases]
    assert [s.value for s in lucky if s.value] == [1, 1]  # POPE's yes and MileBench's C
    assert all("although the reply is empty" in s.why for s in lucky if s.value)


def test_no_answer_is_not_scored() -> None:
    assert score_item(POPE, item("yes", "random"), None).value is None


def test_a_crash_of_the_published_scorer_is_a_wrong_answer_that_says_so() -> None:
    score = score_item(NIAH, item(2, "retrieval-image", n_choices=4), "²")
    assert score.value == 0 and "ValueError" in score.why
    assert score_item(NIAH, item(2, "retrieval-image", n_choices=4), "²", "fixed").value == 0


def test_extracted_answers_are_kept_apart_from_the_completion() -> None:
    chosen = item("y", "TQA", choice_list=["x", "y"], n_images=2)
    assert score_item(MILE, chosen, "B. y").extracted == "B"
    assert score_item(POPE, item("no", "random"), "No, there is none.").extracted == "no"


def test_unknown_names_in_a_table_are_named() -> None:
    with pytest.raises(UnknownName, match="exact_match_accuracy"):
        score_item(EASY.model_copy(update={"scorer": "exact_match"}), item("a"), "a")
    with pytest.raises(UnknownName, match="pope"):
        aggregate(EASY.model_copy(update={"aggregate": "popo"}), [])


# an answer that is none ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["oom", "error", "refused"])
@pytest.mark.parametrize("table", [EASY, POPE, CHART, MILE, NIAH], ids=lambda t: t.name)
def test_an_oom_is_never_scored_as_an_answer(table: Benchmark, outcome: str, tmp_path) -> None:
    """Such rows stay in the total and change no mean, whatever their fields hold."""
    rows = golds(table, tmp_path / "m")
    before = by_name(table, rows)
    lost = [{**r, "id": f"lost {r['id']}", "outcome": outcome, "score": 1.0, "completion": "yes"} for r in rows]
    after = by_name(table, rows + lost)
    for name, m in after.items():
        assert (m.value, m.n_scored) == (before[name].value, before[name].n_scored), name
        assert m.n_total == 2 * before[name].n_total, name
    only_lost = by_name(table, lost)
    assert all(m.value is None and m.n_scored == 0 for m in only_lost.values())


def test_truncated_answers_count() -> None:
    rows = [row(item("yes", id_=str(i)), EASY, "yes", outcome="truncated") for i in range(3)]
    assert by_name(EASY, rows)["accuracy"].n_scored == 3


@pytest.mark.parametrize("table", [EASY, POPE, CHART, MILE, NIAH], ids=lambda t: t.name)
def test_no_rows_crash_nothing(table: Benchmark) -> None:
    for compat in ("upstream", "fixed"):
        assert all(m.value is None and m.note for m in aggregate(table, [], compat))


@pytest.mark.parametrize("table", [EASY, POPE, CHART, MILE], ids=lambda t: t.name)
def test_all_right_is_a_hundred(table: Benchmark, tmp_path) -> None:
    metrics = aggregate(table, golds(table, tmp_path / "m"))
    assert metrics[0].value == pytest.approx(100, abs=1e-5) and metrics[0].low < 100


# aggregates ----------------------------------------------------------------------------------------------------------


def test_pope_headline_is_the_mean_f1_of_the_published_scorer() -> None:
    rng = random.Random(0)
    rows, f1s = [], []
    replies = ["yes", "Yes", "No", "no", "NO", "maybe", "", "not at all"]
    for category in POPE.options["categories"]:
        labels = [rng.choice(["yes", "no"]) for _ in range(60)]
        texts = [rng.choice(replies) for _ in labels]
        f1s.append(SCORERS["pope_metrics"](texts, labels)["f1"])
        for k, (label, text) in enumerate(zip(labels, texts, strict=True)):
            rows.append(row(item(label, category, f"{category}{k}", cluster=str(k // 6)), POPE, text))
    found = by_name(POPE, rows)
    assert found["F1"].value == pytest.approx(100 * sum(f1s) / 3)
    strict = by_name(POPE, rows, "fixed")
    texts, labels = [r["completion"] for r in rows[:60]], [r["gold"] for r in rows[:60]]
    assert strict["F1/adversarial"].value == pytest.approx(
        100 * SCORERS["pope_metrics"](texts, labels, compat="fixed")["f1"]
    )
    replaced = by_name(POPE, [{**r, "score": r["strict_score"]} for r in rows])
    assert replaced["F1"].value == pytest.approx(strict["F1"].value)


def test_pope_without_positives_has_no_f1_and_says_why() -> None:
    rows = [row(item("no", "random", str(i)), POPE, "no") for i in range(4)]
    found = by_name(POPE, rows)
    assert found["F1"].value is None and "no F1 for adversarial, popular, random" in found["F1"].note
    assert "divides by zero" in found["F1/random"].note and found["accuracy"].value == 100


def test_chartqa_weighs_both_halves_equally() -> None:
    rows = [row(item("a", "human", f"h{i}"), CHART, "a") for i in range(10)]
    rows += [row(item("a", "augmented", f"a{i}"), CHART, "b") for i in range(30)]
    found = by_name(CHART, rows)
    assert found["relaxed accuracy"].value == 50 and found["accuracy"].value == 25
    assert next(iter(found)) == "relaxed accuracy"
    half = by_name(CHART, rows[:10])
    assert half["relaxed accuracy"].value is None and "augmented" in half["relaxed accuracy"].note


def test_milebench_prints_both_readings_of_t_and_s() -> None:
    """T-3 has two sets, T-1 three: a perfect T-1 weighs 3/13 by sets and 1/4 by tasks."""
    rows = []
    for task, names in MILE.options["tasks"].items():
        for name in names:
            value = float(task in ("T-1", "N-1"))
            rows.append(
                {
                    "id": name,
                    "group": name,
                    "outcome": "ok",
                    "score": value,
                    "strict_score": value,
                    "meta": {},
                    "gold": "",
                }
            )
    found = by_name(MILE, rows)
    assert found["T (set mean)"].value == pytest.approx(300 / 13) and found["T (task mean)"].value == pytest.approx(25)
    assert found["S (set mean)"].value == 0 and found["NI"].value == 50
    assert found["average"].value == pytest.approx((300 / 13 + 50) / 3)
    assert found["realistic (task mean)"].value == pytest.approx(100 / 9)
    assert found["GPR1200"].value == 0 and next(iter(found)) == "average"
    cut = by_name(MILE, [r for r in rows if r["group"] != "IEdit"])
    assert cut["S (set mean)"].value is None and "IEdit" in cut["S (set mean)"].note
    assert cut["T (set mean)"].value is not None and cut["average"].value is None


def test_mmniah_columns_equal_the_published_aggregation() -> None:
    rng = random.Random(1)
    rows, expected = [], {}
    for task in NIAH.options["tasks"]:
        part = []
        for k in range(80):
            depth: Any = rng.choice([rng.random(), [rng.random(), rng.random()], 1.0, [0.6]])
            gold: Any = [1, 2] if "counting" in task else "oak" if "text" in task else 1
            reply = rng.choice(["[1, 2]", "[1, 3]", "oak", "B", "pine"])
            length = rng.choice([512, 1000, 3000, 20000, 70000])
            part.append({"answer": gold, "response": reply, "context_length": length, "placed_depth": depth})
            one = item(gold, task, f"{task}{k}", context_length=length, placed_depth=depth, n_choices=4)
            rows.append(row(one, NIAH, reply))
        expected[task] = SCORERS["mmniah_aggregate_v2pe"](task, part)
    found = by_name(NIAH, rows)
    for task, result in expected.items():
        assert found[task].value == pytest.approx(100 * result["average"], abs=1e-3)
        assert found[f"{task} (plain accuracy)"].value == pytest.approx(100 * result["weighted_avg_acc"])
    image = sum(result["average"] for task, result in expected.items() if task.endswith("image")) / 3
    assert found["image"].value == pytest.approx(100 * image, abs=1e-3)
    assert found["average"].value == pytest.approx((found["image"].value + found["text"].value) / 2)


def test_fixed_mmniah_columns_leave_empty_cells_out() -> None:
    one = item("oak", "retrieval-text", context_length=2000, placed_depth=[0.5])
    rows = [row(one, NIAH, "oak")]
    assert by_name(NIAH, rows)["retrieval-text"].value == pytest.approx(100 / 55)
    assert by_name(NIAH, rows, "fixed")["retrieval-text"].value == 100
    short = item("oak", "retrieval-text", context_length=900, placed_depth=[0.5])
    found = by_name(NIAH, [row(short, NIAH, "oak")], "fixed")
    assert found["retrieval-text"].value is None and found["retrieval-text (plain accuracy)"].value == 100


def test_metrics_do_not_depend_on_chance() -> None:
    rng = random.Random(2)
    rows = [row(item("yes", "random", str(k), cluster=str(k // 3)), POPE, rng.choice(["yes", "no"])) for k in range(90)]
    assert aggregate(POPE, rows) == aggregate(POPE, list(rows))
