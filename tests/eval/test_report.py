"""The report's numbers, against values computed by hand; the page is self-contained, escaped and deterministic."""

import csv
import importlib.util
import json
import re
from pathlib import Path

import pytest

from vlm.core.errors import DataError
from vlm.eval.report.collect import find_evaluations, find_stages
from vlm.eval.report.long_context import haystacks
from vlm.eval.report.page import write_report
from vlm.eval.report.plots import Series, colour, line_chart, short, ticks
from vlm.eval.report.samples import pick
from vlm.eval.report.tables import blind, build, differences

spec = importlib.util.spec_from_file_location("report_fixture", Path(__file__).with_name("report_fixture.py"))
fixture = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixture)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fixture.make_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def written(run):
    out = run / "report" / "index.html"
    return write_report([run], out, markdown=True, table=True), out


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


def test_unscored_items_are_in_no_cell(tmp_path):
    meta = {"context_length": 1500, "placed_depth": 0.1}
    rows = [answer("a", 1.0, meta=meta), answer("b", 1.0, outcome="oom", meta=meta)]
    (haystack,) = haystacks(small(tmp_path, rows))
    assert haystack["counts"][0] == [1]


def test_the_blind_difference_is_paired_over_items_that_both_runs_scored(tmp_path):
    seen = small(
        tmp_path, [answer("a", 1.0), answer("b", 1.0), answer("c", 0.0), answer("d", 1.0, outcome="oom")], "seen"
    )
    unseen = small(tmp_path, [answer(i, float(i == "a")) for i in "abcd"], "unseen", shuffle=True)
    (row,) = blind([seen, unseen])
    assert row["items"] == 3
    assert row["sighted"] == pytest.approx(200 / 3) and row["blind"] == pytest.approx(100 / 3)
    assert row["difference"] == pytest.approx(100 / 3) and row["low"] < row["difference"] < row["high"] <= 100
    assert blind([seen]) == []


def test_differing_scorers_are_counted_with_examples(tmp_path):
    rows = [answer("a", 1.0, strict=0.0), answer("b", 1.0), answer("c", 0.0, strict=1.0)]
    found = differences(small(tmp_path, rows))
    assert (found["items"], found["of"], found["higher_upstream"]) == (2, 3, 1)
    assert [x["id"] for x in found["examples"]] == ["a", "c"]
    assert differences(small(tmp_path, [answer("a", 1.0)], "same")) is None


def test_a_run_that_is_not_comparable_says_why(tmp_path):
    limited = {"limit": 1, "available": 5349, "mini": False}
    e = small(tmp_path, [answer("a", 1.0, outcome="oom")], **limited, published=[PUBLISHED])
    (group,) = build([e], [])["published"]
    assert group["metrics"][0]["ours"][0]["caveats"] == ["first 1 of 5,349 items", "1 items unscored"]


PUBLISHED = {"system": "S", "metric": "accuracy", "value": 1.0, "source": "p"}


def test_only_metrics_of_the_same_name_stand_beside_a_published_one(tmp_path):
    e = small(tmp_path, [answer("a", 1.0)], published=[{**PUBLISHED, "metric": "other"}])
    assert build([e], [])["published"][0]["metrics"][0]["ours"] == []


def test_the_last_record_of_a_repeated_step_counts_and_bad_losses_are_counted(tmp_path):
    folder = tmp_path / "demo" / "train" / "2-sft"
    folder.mkdir(parents=True)
    losses = [(1, 9.0), (2, 8.0), (2, 7.0), (3, float("nan"))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "loss": x}) + "\n" for s, x in losses))
    (stage,) = find_stages([tmp_path])
    assert (stage.run, stage.name) == ("demo", "2-sft")
    (row,) = build([], [stage])["training"]
    assert row["curve"] == [[1, 9.0], [2, 7.0]] and row["not_finite"] == 1 and row["steps"] == 3


def test_samples_are_capped_mixed_and_the_same_items_in_every_run(run):
    browser = pick(find_evaluations([run]), 60)
    shown = {s["title"]: (s["shown"], s["of"]) for s in browser["shown"]}
    assert shown == {"DocVQA val": (60, 480), "MM-NIAH retrieval-image": (60, 528), "POPE": (12, 12)}
    docs = [s for s in browser["samples"] if s["benchmark"] == "DocVQA val"]
    ids = {run: [s["id"] for s in docs if s["run"] == run] for run in {s["run"] for s in docs}}
    assert len(ids) == 4 and len({tuple(i) for i in ids.values()}) == 1
    assert {"right", "wrong", "unscored"} <= {s["verdict"] for s in docs}
    assert pick(find_evaluations([run]), 60) == browser
    assert pick(find_evaluations([run]), 60, seed=1)["samples"] != browser["samples"]


def test_images_are_small_and_shared_and_a_missing_one_leaves_a_gap(tmp_path, run):
    browser = pick(find_evaluations([run]), 60)
    used = {name for s in browser["samples"] for name in s["images"]}
    assert used == set(browser["images"]) and len(used) <= 24
    assert all(len(url) < 30_000 for url in browser["images"].values())
    e = small(tmp_path, [fixture.row("bench", "a", ["/nowhere.jpg"], "q", "g", "a", 1.0)])
    assert pick([e])["samples"][0]["images"] == [""]


def test_the_page_needs_no_network_and_escapes_what_models_say(written):
    page = written[1].read_text()
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert "http" not in re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]*", "", page)
    assert page.count("</script>") == 2 and "<b>not markup</b>" not in page
    assert "60 of 480 shown" in page


def test_the_same_runs_give_the_same_bytes_and_times_stay_below_timing(run, written, tmp_path):
    tables, out = written
    timing = run / "eval" / "v2pe-tiny" / "pope" / "default" / "timing.json"
    timing.write_text(timing.read_text().replace("12.5", "99.5"))
    again = write_report([run], tmp_path / "index.html")
    assert (tmp_path / "index.html").read_bytes() == out.read_bytes()
    assert again.pop("timing") != (first := dict(tables)).pop("timing")
    assert again == first


def test_csv_and_markdown_hold_every_metric(written):
    tables, out = written
    lines = list(csv.DictReader((out.parent / "accuracy.csv").read_text().splitlines()))
    assert len(lines) == sum(len(row["metrics"]) for row in tables["accuracy"]) == 9
    assert lines[0]["benchmark"] == "DocVQA val" and lines[0]["total"] == "120"
    assert "| InternVL2-2B | accuracy | 86.9 | V2PE, table 4 |" in (out.parent / "report.md").read_text()


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no metrics\.jsonl"):
        write_report([tmp_path], tmp_path / "x.html")
    with pytest.raises(DataError, match="no such run folder"):
        write_report([tmp_path / "none"], tmp_path / "x.html")


def test_a_damaged_results_file_is_named_with_its_line(tmp_path):
    e = small(tmp_path, [answer("a", 1.0)])
    with (e.folder / "results.jsonl").open("a") as f:
        f.write("{half")
    with pytest.raises(DataError, match=r"results\.jsonl:2"):
        find_evaluations([tmp_path])


def test_colours_run_from_crimson_over_gold_to_seagreen():
    assert [colour(x) for x in (-1, 0, 0.5, 1, 2)] == ["#dc143c", "#dc143c", "#ffd700", "#3cb371", "#3cb371"]
    assert colour(0.25) == "#ee761e"


@pytest.mark.parametrize(("low", "high"), [(0, 100), (0.9, 5.3), (-3, 4e6), (2, 2), (0, 0)])
def test_ticks_enclose_the_range_and_are_few(low, high):
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 8


def test_a_chart_stays_inside_its_frame():
    svg = line_chart([Series("a<b", [(1, 50, 40, 60), (256, 100, 90, 100)])], "x", "y", log2=True, y_range=(0, 100))
    assert "a&lt;b" in svg and "a<b" not in svg
    numbers = [tuple(map(float, p.split(","))) for p in re.search('points="([^"]*)"', svg)[1].split()]
    assert all(0 <= x <= 440 and 0 <= y <= 240 for x, y in numbers)
    assert [short(x) for x in (0.25, 256, 1000, 64000, 2e6)] == ["0.25", "256", "1k", "64k", "2M"]
