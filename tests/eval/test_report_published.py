"""The published tables: whole, arithmetically checked, and never beside an unmarked number that cannot be compared."""

import json

import pytest

from support import report_run as fixture
from vlm.core.config import parse
from vlm.core.errors import ConfigError
from vlm.eval.benchmark import load_benchmark, tables
from vlm.eval.printed import PublishedTable, load_published
from vlm.eval.report.tables.published import Footnotes, averages, tables_beside
from vlm.eval.report.tables.reasons import reason_rows
from vlm.eval.saved.evaluations import find_evaluations


def printed():
    return [
        (table, system, column, value)
        for published in load_published()
        for table in published.tables
        for system in table.systems
        for column, value in zip(table.columns, system.values, strict=True)
    ]


def evaluate(tmp_path, benchmark, metric, score=1.0, name="v2pe", n=4, **about):
    rows = [fixture.row(benchmark, f"{benchmark}/{i}", [], "q", "g", "a", score) for i in range(n)]
    options = {"metric": metric, "mini": False, **about}
    fixture.evaluation(tmp_path / name / benchmark, rows, benchmark, name, **options)


def beside(tmp_path, system, title):
    shown = tables_beside(find_evaluations([tmp_path]))
    return next(t for t in shown if (t["system"], t["title"]) == (system, title))


def cell(table, column, ours=0):
    return next(row for row in table["rows"] if row["column"] == column)["ours"][ours]


def test_the_tables_hold_every_row_and_column_that_was_published():
    sizes = [(t.title, len(t.columns), len(t.systems)) for p in load_published() for t in p.tables]
    assert sizes == [
        ("General benchmarks", 10, 11),
        ("Long-context benchmarks", 9, 12),
        ("Model card", 14, 7),
        ("Repository, February 2024", 15, 1),
        ("General benchmarks", 9, 3),
        ("Referring expressions", 9, 3),
        ("Model cards", 12, 3),
    ]
    assert sum(value is not None for *_, value in printed()) == 91 + 64 + 64 + 15 + 27 + 27 + 34


def test_every_printed_number_of_a_benchmark_stands_beside_it():
    found = {
        (b.name, n.metric, n.system): n.value
        for b in map(load_benchmark, tables())
        if b.kind == "published"
        for n in b.published
    }
    assert found == {
        (c.benchmark, c.metric, s.name): value for _, s, c, value in printed() if c.benchmark and value is not None
    }
    assert found["MME", "perception", "GPT-4V"] == 1409
    assert found["GQA", "accuracy", "InternVL-Chat-V1-2 (Feb 2024)"] == 64


def test_the_rows_of_other_models_are_those_of_the_readme():
    """Given sums of the printed rows, added by hand from the README."""
    general, long = load_published()[0].tables
    sums = {t.title: {s.name: round(sum(filter(None, s.values)), 1) for s in t.systems} for t in (general, long)}
    assert sums["General benchmarks"]["Qwen2-VL-72B"] == 850.1
    assert sums["Long-context benchmarks"]["Claude3-Opus"] == 287.4
    assert [s.head for s in general.systems][:2] == ["2.0B", "2.0B"]


def test_columns_name_benchmarks_and_metrics_that_exist():
    names = {load_benchmark(name).name for name in tables()}
    for _, _, column, _ in printed():
        assert column.benchmark is None or column.benchmark in names
        assert (column.benchmark is None) == (column.metric is None)


def test_the_five_averages_that_do_not_add_up_are_found_and_no_other():
    checks = [a for p in load_published() for t in p.tables for a in averages(t)]
    wrong = {(a["system"], a["column"]): (a["printed"], round(a["mean"], 1)) for a in checks if not a["adds_up"]}
    assert len(checks) == 19
    assert wrong == {
        ("Gemini-1.5", "NIAH average"): (55.2, 55.3),
        ("V2PE-32K (released)", "Average"): (72.5, 72.7),
        ("V2PE-32K (released)", "NIAH average"): (81.8, 81.9),
        ("V2PE-32K (released)", "MileBench average"): (72.5, 73.0),
        ("ConvLLaVA-1536", "Average"): (82.3, 82.5),
    }
    assert [a["column"] for a in checks if not a["adds_up"] and a["rounding"]] == ["NIAH average"] * 2


def test_a_wrong_average_carries_its_recomputed_value_and_a_footnote(tmp_path):
    table = beside(tmp_path, "ConvLLaVA", "Referring expressions")
    row = table["rows"][-1]
    assert [c["recomputed"] for c in row["published"]] == [None, None, 82.5]
    assert row["published"][2]["marks"] == ["a"]
    assert table["footnotes"][0]["text"] == (
        "Printed 82.3, but the mean of the 8 printed columns is 82.54: 82.5; rounding cannot explain it."
    )


def test_miniature_partial_and_unscored_numbers_never_stand_unmarked(tmp_path):
    evaluate(tmp_path, "DocVQA", "ANLS", mini=True)
    evaluate(tmp_path, "ChartQA", "relaxed accuracy", available=2500)
    evaluate(tmp_path, "AI2D", "accuracy")
    table = beside(tmp_path, "V2PE", "General benchmarks")
    texts = {note["mark"]: note["text"] for note in table["footnotes"]}
    assert [texts[m] for m in cell(table, "DocVQA")["marks"]] == ["miniature data"]
    assert [texts[m] for m in cell(table, "ChartQA")["marks"]] == ["first 4 of 2,500 items"]
    assert cell(table, "AI2D")["marks"] == [] and cell(table, "AI2D")["value"] == 100
    assert cell(table, "POPE") is None and cell(table, "Average") is None


def test_our_average_is_of_all_columns_and_inherits_their_marks(tmp_path):
    (published,) = [p for p in load_published() if p.title == "ConvLLaVA"]
    for number, column in enumerate(published.tables[1].columns[:-1]):
        options = {"template": "llava_v1", "mini": number == 3, "name": "mine"}
        evaluate(tmp_path, column.benchmark, column.metric, float(number < 2), **options)
    average = cell(beside(tmp_path, "ConvLLaVA", "Referring expressions"), "Average")
    assert average["value"] == 25 and average["total"] == 32 and len(average["marks"]) == 1


def test_a_control_with_exchanged_images_and_another_family_are_not_ours(tmp_path):
    evaluate(tmp_path, "POPE", "F1", name="blind", shuffle=True)
    evaluate(tmp_path, "POPE", "F1", name="other", template="Hermes-2")
    evaluate(tmp_path, "POPE", "F1", name="server", template=None)
    assert [o["model"] for o in beside(tmp_path, "V2PE", "General benchmarks")["ours"]] == ["server"]
    assert [o["model"] for o in beside(tmp_path, "InternVL-Chat-V1-2", "Model card")["ours"]] == ["other", "server"]


def test_two_runs_of_the_same_have_a_column_each(tmp_path):
    for score in (0.0, 1.0):
        evaluate(tmp_path / str(score), "POPE", "F1", score)
    table = beside(tmp_path, "V2PE", "General benchmarks")
    assert [o["variant"] for o in table["ours"]] == ["plain positions", "plain positions, run 2"]
    assert [cell(table, "POPE", n)["value"] for n in (0, 1)] == [0, 100]


def test_reasons_name_data_settings_scorer_and_the_peculiarities_of_the_benchmark(tmp_path):
    rows = [fixture.row("DocVQA", str(i), [], "q", "g", "a", 1.0, strict=float(i > 0)) for i in range(4)]
    fixture.evaluation(tmp_path / "x", rows, "DocVQA", "v2pe", stride=16, metric="ANLS", available=5349)
    (found,) = reason_rows(find_evaluations([tmp_path]))
    assert found["system"] == "V2PE"
    assert found["reasons"][:6] == [
        "miniature data",
        "first 4 of 5,349 items",
        "dtype: float32; published bfloat16",
        "stride: 16; published 64",
        "max tiles: 6; published 18",
        "scorer: the published rule, faults included; the strict one scores 1 answers differently and gives 75.0",
    ]
    assert found["reasons"][6:] == load_benchmark("DocVQA").notes


def test_predictions_from_a_file_are_a_reason_with_what_was_wrong_with_them(tmp_path):
    evaluate(tmp_path, "POPE", "F1", template=None)
    path = tmp_path / "v2pe" / "POPE" / "summary.json"
    problems = {"missing": {"n": 3, "examples": []}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"imported": {"format": "ours", "problems": problems}}))
    found = reason_rows(find_evaluations([tmp_path]))
    assert [r["system"] for r in found] == ["V2PE", "InternVL-Chat-V1-2", "ConvLLaVA"]
    assert "predictions read from a file (ours): 3 missing" in found[0]["reasons"]
    assert "template: not recorded; published internlm2-chat" in found[0]["reasons"]


def test_a_table_whose_rows_do_not_fit_is_refused():
    columns = [{"name": "A"}, {"name": "mean", "mean_of": ["B"]}]
    system = {"name": "S", "source": "p", "values": [1]}
    with pytest.raises(ConfigError, match="S: 1 values, 2 columns"):
        parse({"title": "t", "columns": columns, "systems": [system]}, PublishedTable, where="t.yaml")
    with pytest.raises(ConfigError, match="mean_of names no column: B"):
        parse({"title": "t", "columns": columns, "systems": []}, PublishedTable, where="t.yaml")


def test_footnotes_are_lettered_once_each():
    notes = Footnotes()
    assert [notes.mark(text) for text in ("x", "y", "x")] == ["a", "b", "a"]
    assert [notes.mark(str(n)) for n in range(25)][-2:] == ["z", "aa"]
