"""The report as files: every format from the same tables, the same bytes twice, clear errors for damaged runs."""

import csv
import io
import json
import re

import pytest
from PIL import Image

from support import report_run as fixture
from vlm.core.errors import ConfigError, DataError
from vlm.eval.report.build import build_report
from vlm.eval.report.render.figures import figure_files, pages
from vlm.eval.report.write import NAMES, plan_files, write_report


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fixture.make_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def written(run):
    report, files = write_report([run], run / "report")
    return report, {path.relative_to(run / "report").as_posix(): path.read_bytes() for path in files}


def one(tmp_path, **extra):
    rows = [fixture.row("bench", i, [], "question", "gold", "answer", 1.0) for i in "ab"]
    fixture.evaluation(tmp_path / "e", rows, "Bench", "m", **extra)
    return tmp_path / "e"


def test_a_folder_takes_every_format(written):
    names = set(written[1])
    assert {"index.html", "report.json", "report.md", "report.csv"} < names
    figures = {name.removesuffix(".png") for name in names if name.endswith(".png")}
    assert figures == {name.removesuffix(".pdf") for name in names if name.endswith(".pdf")}
    assert {"figures/accuracy", "figures/loss-1-projector", "figures/position-mm-niah-test"} < figures
    assert sum(name.startswith("figures/haystack-mm-niah-test") for name in figures) == 4


def test_the_same_runs_give_the_same_bytes_and_times_stay_in_their_place(run, written, tmp_path):
    def again(name):
        files = write_report([run], tmp_path / name, formats=["html", "json", "csv", "md"])[1]
        return {path.name: path.read_bytes() for path in files}

    same = again("same")
    assert len(same) == 4 and all(written[1][name] == data for name, data in same.items())
    timing = run / "eval" / "v2pe-tiny" / "POPE" / "default" / "timing.json"
    before = timing.read_text()
    timing.write_text(before.replace("12.5", "99.5"))
    try:
        later = again("later")
    finally:
        timing.write_text(before)
    assert {name for name in later if later[name] != same[name]} == {"index.html", "report.json", "report.csv"}
    times = re.compile(rb'<section id="times">.*?</section>', re.DOTALL)
    assert times.sub(b"", later["index.html"]) == times.sub(b"", same["index.html"])
    first, second = (json.loads(files["report.json"]) for files in (same, later))
    assert first.pop("timing") != second.pop("timing") and first == second
    differ = set(later["report.csv"].splitlines()) - set(same["report.csv"].splitlines())
    assert differ and all(line.startswith(b"time,") for line in differ)


def test_the_page_needs_no_network_and_escapes_what_models_say(written):
    page = written[1]["index.html"].decode()
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert "http" not in re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]*", "", page)
    assert page.count("</script>") == 2 and "<b>not markup</b>" not in page
    assert "60 of 480 shown" in page and "5 printed averages do not add up" in page


def test_every_table_of_the_page_is_in_the_csv_one_number_a_line(written):
    report, files = written
    lines = list(csv.DictReader(io.StringIO(files["report.csv"].decode())))
    sections = {line["section"] for line in lines}
    assert {"accuracy", "published", "ours beside published", "average recomputed", "haystack cell", "loss"} < sections
    assert sum(line["section"] == "accuracy" for line in lines) == sum(len(r["metrics"]) for r in report.accuracy) == 9
    (docs,) = [
        x
        for x in lines
        if (x["section"], x["system"]) == ("ours beside published", "v2pe-tiny") and x["metric"] == "DocVQA"
    ]
    assert docs["marks"] == "miniature data; 2 items unscored" and docs["total"] == "120"
    wrong = [x for x in lines if x["section"] == "average recomputed" and x["marks"]]
    assert [x["marks"] for x in wrong] == [f"printed {x}" for x in (72.5, 55.2, 81.8, 72.5, 82.3)]


def test_markdown_marks_what_the_page_marks(written):
    text = written[1]["report.md"].decode()
    assert "| V2PE-32K (released) | MileBench average | 73.03 | 72.5 | **no** |" in text
    assert re.search(r"\| DocVQA \| [\d.]+ \[a, b\] \| 86\.9 \| – \| 90\.1 \| .* \| 84\.9 \| 83\.9 \|", text)
    assert "- [a] miniature data" in text
    accuracies = [line for line in text.splitlines() if "| ANLS |" in line]
    assert len(accuracies) == 4 and all(line.count("|") == 11 for line in accuracies)


def test_figures_are_images_without_clock_or_machine(written):
    png = written[1]["figures/accuracy.png"]
    assert Image.open(io.BytesIO(png)).info.keys() <= {"dpi"}
    pdf = written[1]["figures/accuracy.pdf"]
    assert pdf.startswith(b"%PDF") and b"CreationDate" not in pdf and b"Producer" not in pdf


def test_figures_are_the_same_bytes_twice(tmp_path):
    report = build_report([one(tmp_path)])
    assert figure_files(report, "png") == figure_files(report, "png") and pages(report) == pages(report)


@pytest.mark.parametrize("suffix", ["md", "csv", "json", "png", "pdf"])
def test_a_file_takes_the_format_of_its_suffix(tmp_path, suffix):
    out = tmp_path / f"out.{suffix}"
    _, files = write_report([one(tmp_path)], out)
    assert files == [out] and out.stat().st_size > 200
    starts = {"md": b"# m", "csv": b"section,", "json": b"{", "png": b"\x89PNG", "pdf": b"%PDF"}
    assert out.read_bytes().startswith(starts[suffix])


def test_figures_of_nothing_are_an_error_and_no_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": NaN}\n')
    with pytest.raises(DataError, match="nothing to draw"):
        write_report([tmp_path], tmp_path / "out.pdf")
    assert not (tmp_path / "out.pdf").exists()


def test_formats_come_beside_a_file_or_into_a_folder(tmp_path):
    out = tmp_path / "index.html"
    assert plan_files(out, []) == [(out, "html"), (tmp_path / "report.json", "json")]
    assert plan_files(out, ["csv", "html"])[2:] == [(tmp_path / "report.csv", "csv")]
    assert plan_files(tmp_path, ["md"]) == [(tmp_path / "report.md", "md")]
    assert [kind for _, kind in plan_files(tmp_path / "new", [])] == list(NAMES)
    with pytest.raises(ConfigError, match=r"(?s)'docx'.*html, json, md"):
        plan_files(tmp_path / "x.docx", [])
    with pytest.raises(ConfigError, match="'tex'"):
        plan_files(out, ["tex"])


def test_nothing_to_report_is_an_error_that_names_what_was_begun(tmp_path):
    with pytest.raises(DataError, match=r"no metrics\.jsonl"):
        write_report([tmp_path], tmp_path / "x.html")
    with pytest.raises(DataError, match="no such run folder"):
        write_report([tmp_path / "none"], tmp_path / "x.html")
    (tmp_path / "eval" / "shards" / "0-of-2").mkdir(parents=True)
    (tmp_path / "eval" / "shards" / "0-of-2" / "outcomes.jsonl").write_text("")
    with pytest.raises(DataError, match=r"begun and not finished: \S*/eval\n"):
        build_report([tmp_path])
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: "{half", "not JSON"),
        (lambda s: "[1]", "holds list"),
        (lambda s: json.dumps({k: v for k, v in json.loads(s).items() if k != "title"}), "title missing"),
        (lambda s: json.dumps(json.loads(s) | {"metrics": [{"name": "x"}]}), "a metric"),
    ],
)
def test_a_broken_summary_is_named_with_what_is_wrong(tmp_path, change, message):
    path = one(tmp_path) / "summary.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=rf"(?s)summary\.json.*{message}.*vlm eval"):
        build_report([tmp_path])


def test_results_without_a_summary_say_how_to_complete_them(tmp_path):
    (one(tmp_path) / "summary.json").unlink()
    with pytest.raises(DataError, match=r"no such file: .*summary\.json"):
        build_report([tmp_path])


def test_what_is_not_a_number_is_marked_and_never_printed(tmp_path):
    folder = one(tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    summary["metrics"][0]["value"] = float("nan")
    (folder / "summary.json").write_text(json.dumps(summary))
    results = (folder / "results.jsonl").read_text()
    (folder / "results.jsonl").write_text(results.replace('"score": 1.0', '"score": NaN', 1))
    report, _ = write_report([folder], tmp_path / "out")
    assert (
        report.accuracy[0]["metrics"][0] | {"value": None, "note": "not a number"} == report.accuracy[0]["metrics"][0]
    )
    assert "2 scores that are not numbers" in report.accuracy[0]["caveats"]
    assert json.loads((tmp_path / "out" / "report.json").read_text(), parse_constant=pytest.fail)
    assert "nan" not in (tmp_path / "out" / "report.csv").read_text().lower()


def test_mixed_versions_and_unfinished_evaluations_are_said_first(tmp_path):
    for name, torch in (("a", "2.14.1"), ("b", "2.13.0")):
        folder = one(tmp_path / name)
        run = json.loads((folder / "run.json").read_text()) | {"versions": {"torch": torch}}
        (folder / "run.json").write_text(json.dumps(run))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "outcomes.jsonl").write_text("")
    report, files = write_report([tmp_path], tmp_path / "out.html")
    assert report.warnings == [
        "mixed versions of torch: 2.13.0, 2.14.1",
        f"begun and not finished: {tmp_path / 'c'}; rerun the same `vlm eval`",
    ]
    assert "mixed versions of torch" in files[0].read_text()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("benchmarks/x.tsv", "a\tb\n1\t2\n", "no column s"),
        ("rulegraph.dot", "digraph {}", "not a rule graph"),
        ("train/1/metrics.jsonl", "1\n", "metrics"),
    ],
)
def test_damaged_records_of_a_run_are_named(tmp_path, name, text, message):
    one(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        build_report([tmp_path])


def test_only_tables_in_a_benchmarks_folder_of_the_run_are_times(tmp_path):
    run = tmp_path / "benchmarks" / "run"
    one(run)
    (run / "submission.tsv").write_text("index\tprediction\n1\tA\n")
    assert build_report([run]).timing["rules"] == []


def test_a_drawn_rule_graph_is_shown_as_an_image(tmp_path):
    one(tmp_path)
    (tmp_path / "rulegraph.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    _, files = write_report([tmp_path], tmp_path / "out.html")
    page = files[0].read_text()
    assert 'src="data:image/svg+xml;base64,' in page and "alert(1)" not in page
