"""The report's numbers, against values computed by hand."""

import json
import re

import pytest

from support import report_run as fixture
from vlm.core.errors import DataError
from vlm.eval.report.build import build_report
from vlm.eval.report.gather.comparability import caveats_of
from vlm.eval.report.gather.samples import choose_samples
from vlm.eval.report.gather.training import find_stages
from vlm.eval.report.gather.workflow import find_graphs
from vlm.eval.report.render.charts import Chart, Series, charts
from vlm.eval.report.render.rule_graph import draw_graph, layers
from vlm.eval.report.render.svg import color, line_chart, short, ticks
from vlm.eval.report.tables.evaluations import blind_rows, other_published, scorer_difference
from vlm.eval.report.tables.long_context import by_position, haystacks
from vlm.eval.report.tables.training import stage_row
from vlm.eval.saved.evaluations import find_evaluations


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fixture.make_run(tmp_path_factory.mktemp("report"))


def small(tmp_path, rows, name="b", **options):
    fixture.evaluation(tmp_path / name, rows, "Bench", "m", **options)
    return next(e for e in find_evaluations([tmp_path]) if e.folder.name == name)


def answer(id_, score, **extra):
    return fixture.row("bench", id_, [], "question", "gold", "answer", score, **extra)


def test_a_haystack_cell_is_the_mean_of_its_items_and_an_empty_cell_is_none(tmp_path):
    def at(id_, length, depth, score):
        return answer(id_, score, meta={"context_length": length, "placed_depth": depth})

    rows = [at("a", 1500, 0.1, 1.0), at("b", 1999, [0.0, 0.3], 0.0), at("c", 4000, 1.0, 1.0)]
    (haystack,) = haystacks(small(tmp_path, rows))
    assert haystack["lengths"] == [1000, 2000, 4000]
    assert haystack["scores"][0] == [0.5, None, None] and haystack["counts"][0] == [2, 0, 0]
    assert haystack["scores"][4] == [None, None, 1.0]
    assert haystack["plain"] == [0.5, None, 1.0] and haystack["columns"] is None


def test_unscored_items_are_in_no_cell(tmp_path):
    meta = {"context_length": 1500, "placed_depth": 0.1}
    rows = [answer("a", 1.0, meta=meta), answer("b", 1.0, outcome="oom", meta=meta)]
    (haystack,) = haystacks(small(tmp_path, rows))
    assert haystack["counts"][0] == [1]


def test_mm_niah_has_the_published_bins_and_beside_them_the_plain_accuracy(tmp_path):
    """The worked example of the published aggregation: columns [0, 0.4, 0, …, 0.2, 0, 0.2], one sample below 1k."""
    cases = [(3999, 0.0, 1), (60000, 0.0, 0), (4000, 0.6, 0), (79999, 0.6, 1), (3999, 1.0, 1), (512, 1.0, 1)]
    cases += [(45000, 0.35, 1)]
    rows = [
        fixture.row("MM-NIAH", str(n), [], "q", "g", "a", float(right), meta={"context_length": k, "placed_depth": d})
        for n, (k, d, right) in enumerate(cases)
    ]
    (haystack,) = haystacks(small(tmp_path, rows))
    assert haystack["lengths"] == [1000, 2000, 4000, 8000, 12000, 16000, 24000, 32000, 40000, 48000, 64000]
    assert haystack["columns"] == [0, 0.4, 0, 0, 0, 0, 0, 0, 0.2, 0, 0.2] and haystack["left_out"] == 1
    assert haystack["plain"] == [None, 1.0, 0.0, None, None, None, None, None, 1.0, 0.0, 1.0]
    assert haystack["scores"][2][2] == 0.0 and haystack["scores"][3][2] is None  # 0.6 is in cell 2, as published


def test_strides_are_told_apart_by_the_last_position_of_the_same_prompts(run):
    rows = [row for row in by_position(find_evaluations([run])) if row["title"].startswith("MM-NIAH")]
    last = {row["variant"]: max(p["position"] for p in row["points"]) for row in rows}
    assert last == {"stride 1": 24000, "stride 16": 24000, "stride 64": 32000, "stride 256": 64000}
    assert {c.section for c in charts(build_report([run]))} == {"loss", "length", "position", "stride"}


def test_the_blind_difference_is_paired_over_items_that_both_runs_scored(tmp_path):
    seen = small(
        tmp_path, [answer("a", 1.0), answer("b", 1.0), answer("c", 0.0), answer("d", 1.0, outcome="oom")], "seen"
    )
    unseen = small(tmp_path, [answer(i, float(i == "a")) for i in "abcd"], "unseen", shuffle=True)
    (row,) = blind_rows([seen, unseen])
    assert row["items"] == 3
    assert row["sighted"] == pytest.approx(200 / 3) and row["blind"] == pytest.approx(100 / 3)
    assert row["difference"] == pytest.approx(100 / 3) and row["low"] < row["difference"] < row["high"] <= 100
    assert blind_rows([seen]) == []


def test_differing_scorers_are_counted_with_examples(tmp_path):
    rows = [answer("a", 1.0, strict=0.0), answer("b", 1.0), answer("c", 0.0, strict=1.0)]
    found = scorer_difference(small(tmp_path, rows))
    assert (found["items"], found["of"], found["higher_upstream"]) == (2, 3, 1)
    assert [x["id"] for x in found["examples"]] == ["a", "c"]
    assert scorer_difference(small(tmp_path, [answer("a", 1.0)], "same")) is None


def test_a_run_that_is_not_comparable_says_why(tmp_path):
    limited = {"limit": 1, "available": 5349, "mini": False}
    e = small(tmp_path, [answer("a", 1.0, outcome="oom")], **limited, published=[PUBLISHED])
    assert caveats_of(e) == ["first 1 of 5,349 items", "1 items unscored"]
    (group,) = other_published([e])
    assert group["metrics"][0]["ours"][0]["caveats"] == caveats_of(e)


PUBLISHED = {"system": "S", "metric": "accuracy", "value": 1.0, "source": "p"}


def test_only_metrics_of_the_same_name_stand_beside_a_published_one(tmp_path):
    e = small(tmp_path, [answer("a", 1.0)], published=[{**PUBLISHED, "metric": "other"}])
    assert other_published([e])[0]["metrics"][0]["ours"] == []


def test_the_last_record_of_a_repeated_step_counts_and_bad_losses_are_counted(tmp_path):
    folder = tmp_path / "demo" / "train" / "2-sft"
    folder.mkdir(parents=True)
    losses = [(1, 9.0), (2, 8.0), (2, 7.0), (3, float("nan"))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "loss": x}) + "\n" for s, x in losses))
    (stage,) = find_stages([tmp_path])
    assert (stage.run, stage.name) == ("demo", "2-sft")
    row = stage_row(stage)
    assert row["curve"] == [[1, 9.0], [2, 7.0]] and row["not_finite"] == 1 and row["closes"] is None


def test_samples_are_capped_mixed_and_the_same_items_in_every_run(run):
    browser = choose_samples(find_evaluations([run]), 60)
    shown = {s["title"]: (s["shown"], s["of"]) for s in browser["shown"]}
    assert shown == {"DocVQA (validation)": (60, 480), "MM-NIAH (test)": (60, 528), "POPE": (12, 12)}
    docs = [s for s in browser["samples"] if s["benchmark"] == "DocVQA (validation)"]
    ids = {run: [s["id"] for s in docs if s["run"] == run] for run in {s["run"] for s in docs}}
    assert len(ids) == 4 and len({tuple(i) for i in ids.values()}) == 1
    assert {"right", "wrong", "unscored"} <= {s["verdict"] for s in docs}
    assert choose_samples(find_evaluations([run]), 60) == browser
    assert choose_samples(find_evaluations([run]), 60, seed=1)["samples"] != browser["samples"]


def test_images_are_small_and_shared_and_a_missing_one_leaves_a_gap(tmp_path, run):
    browser = choose_samples(find_evaluations([run]), 60)
    used = {name for s in browser["samples"] for name in s["images"]}
    assert used == set(browser["images"]) and len(used) <= 24
    assert all(len(url) < 30_000 for url in browser["images"].values())
    e = small(tmp_path, [fixture.row("bench", "a", ["/nowhere.jpg"], "q", "g", "a", 1.0)])
    assert choose_samples([e])["samples"][0]["images"] == [""]


def test_a_ledger_closes_or_the_report_says_so(run, tmp_path):
    row = stage_row(find_stages([run])[0])
    assert row["ledger"]["dropped"] == 2 and row["closes"] is True
    assert row["reasons"] == [{"what": "dropped", "reason": "FILE: no such file", "samples": 2}]
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0}\n')
    (tmp_path / "summary.json").write_text('{"ledger": {"in": 5, "used": 3, "dropped": 1, "truncated": 0}}')
    assert stage_row(find_stages([tmp_path])[0])["closes"] is False


def test_rules_of_the_workflow_have_their_times_and_memory(run):
    train, report = build_report([run]).timing["rules"]
    assert (train["rule"], train["jobs"], train["seconds"], train["max_rss_mb"]) == ("train", 2, 191.5, 1200.9)
    assert train["longest_job"] == "2-instruction" and train["cpu_seconds"] == 70.1
    assert (report["rule"], report["run"]) == ("report", "demo")


def test_the_rule_graph_is_drawn_with_every_rule_below_what_it_needs(run):
    (graph,) = find_graphs([run])
    names = [sorted(graph.rules[node] for node in layer) for layer in layers(graph)]
    assert names == [["organize"], ["train"], ["evaluate"], ["report"], ["all"]]
    svg = draw_graph(graph)
    assert (
        svg.count("<rect") == 5 and svg.count("<path") == 5
    )  # four steps and a loop; what follows from them is left out and ">evaluate<" in svg


def test_a_damaged_results_file_is_named_with_its_line(tmp_path):
    e = small(tmp_path, [answer("a", 1.0)])
    with (e.folder / "results.jsonl").open("a") as f:
        f.write("{half")
    with pytest.raises(DataError, match=r"results\.jsonl:2"):
        find_evaluations([tmp_path])


def test_colors_run_from_crimson_over_gold_to_seagreen():
    assert [color(x) for x in (-1, 0, 0.5, 1, 2)] == ["#dc143c", "#dc143c", "#ffd700", "#3cb371", "#3cb371"]
    assert color(0.25) == "#ee761e"


@pytest.mark.parametrize(("low", "high"), [(0, 100), (0.9, 5.3), (-3, 4e6), (2, 2), (0, 0)])
def test_ticks_enclose_the_range_and_are_few(low, high):
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 8


def test_a_chart_stays_inside_its_frame():
    svg = line_chart(
        Chart("s", "t", "", [Series("a<b", [(1, 50, 40, 60), (256, 100, 90, 100)])], "x", "y", True, (0, 100))
    )
    assert "a&lt;b" in svg and "a<b" not in svg
    numbers = [tuple(map(float, p.split(","))) for p in re.search('points="([^"]*)"', svg)[1].split()]
    assert all(0 <= x <= 440 and 0 <= y <= 240 for x, y in numbers)
    assert [short(x) for x in (0.25, 256, 1000, 64000, 2e6)] == ["0.25", "256", "1k", "64k", "2M"]
