"""The addresses behind the pages of runs and samples: filters, one sample, pictures, comparison, and who may ask."""

import io
import json
import os
import shutil
import sys

import httpx
import pytest
from PIL import Image

from support import view_runs
from support.live_server import Server
from vlm.cli.server.listening import LOCAL
from vlm.cli.server.views.app import ViewLimits, make_view_app
from vlm.cli.server.views.routes import Viewer
from vlm.cli.server.views.runs import Runs
from vlm.core.media_root import MediaRoot
from vlm.eval.saved.diff import compare_evaluations, find_pairs

ONE = "study/eval/v2pe-32k/digit-haystack/stride64"
TWO = "study/eval/internvl2-2b/digit-haystack/stride64"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return view_runs.make_home(tmp_path_factory.mktemp("home"), n=300)


@pytest.fixture(scope="module")
def client(home):
    server = Server(app_of(home))
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client
    server.stop()


def app_of(home, key=None, names=None):
    return make_view_app(Viewer(Runs(home / "runs"), MediaRoot(home / "dataset")), ViewLimits(key, names))


def asked(client, path, **query):
    answer = client.get(f"/vlm/{path}", params=query)
    while "reading" in answer.json():
        answer = client.get(f"/vlm/{path}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def rows_of(home, id_):
    return [json.loads(text) for text in (home / "runs" / id_ / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("wanted", "keep"),
    [
        ({}, lambda r: True),
        ({"score": "wrong"}, lambda r: r["score"] == 0),
        ({"score": "right", "group": "count-image"}, lambda r: r["score"] == 1 and r["group"] == "count-image"),
        ({"text": "WHICH digit"}, lambda r: True),
        ({"text": "q29"}, lambda r: "q29" in r["id"]),
        ({"text": "nowhere at all"}, lambda r: False),
        ({"outcome": "oom"}, lambda r: False),
    ],
)
def test_filters_choose_what_a_loop_over_the_file_chooses(client, home, wanted, keep):
    expected = [row["id"] for row in rows_of(home, ONE) if keep(row)]
    found = asked(client, "samples", evaluation=ONE, limit=500, **wanted)
    assert found["total"] == len(expected) and [row["id"] for row in found["rows"]] == expected


def test_every_sample_of_every_evaluation_is_there(client, home):
    total = sum(len(path.read_text().splitlines()) for path in (home / "runs").rglob("results.jsonl"))
    found = asked(client, "samples", offset=total - 5, limit=100)
    assert (found["total"], found["of"], len(found["rows"])) == (total, total, 5) and total == 1620


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/mem, which nobody can read from its start")
def test_results_that_cannot_be_read_are_said_and_hide_no_others(client, home):
    broken = home / "runs/broken/eval/m/POPE/default"
    broken.mkdir(parents=True)
    (broken / "results.jsonl").symlink_to("/proc/self/mem")
    runs = Runs(home / "runs")  # looks anew
    server = Server(make_view_app(Viewer(runs, MediaRoot(home / "dataset")), ViewLimits()))
    with httpx.Client(base_url=server.url, timeout=30) as other:
        found = asked(other, "samples", limit=1)
        assert found["total"] == found["of"] > 0 and "results.jsonl cannot be read" in found["problems"][0]
        named = other.get("/vlm/samples", params={"evaluation": "broken/eval/m/POPE/default"})
        assert named.status_code == 422 and "results.jsonl cannot be read" in named.json()["error"]["message"]
        assert asked(other, "samples/one", evaluation=ONE, number=5)["others"]
    server.stop()
    shutil.rmtree(home / "runs/broken")


def test_a_sample_has_everything_that_its_row_has(client, home):
    row = rows_of(home, ONE)[5]
    found = asked(client, "samples/one", evaluation=ONE, number=5)
    assert {**found["row"], "asked": [2]} == row and found["row"]["completion"] == view_runs.HOSTILE
    assert [other["evaluation"] for other in found["others"]] == [TWO]
    assert asked(client, "samples/one", evaluation=f"/another/place/{ONE}", id="q5")["row"] == found["row"]


def test_two_runs_side_by_side_are_those_of_vlm_diff(client, home):
    truth = compare_evaluations(find_pairs(home / "runs" / ONE, home / "runs" / TWO)[0])
    found = asked(client, "samples/compare", a=ONE, b=TWO)
    assert (
        found["kinds"] == truth["kinds"] and found["change"] == truth["change"] and found["causes"] == truth["causes"]
    )
    for kind in ("lost", "gained", "same"):
        assert asked(client, "samples", evaluation=ONE, against=TWO, kind=kind)["total"] == truth["kinds"][kind]
    assert asked(client, "samples", evaluation=ONE, against=TWO, kind="moved")["total"] == len(truth["moved"])
    moved = asked(client, "samples", evaluation=ONE, against=TWO, kind="lost")["rows"][0]
    assert moved["score"] == 1 and moved["other_score"] == 0
    beside = asked(client, "samples/one", evaluation=ONE, number=moved["number"], against=TWO)
    assert beside["against"]["row"]["id"] == beside["row"]["id"] and beside["moved"]["kind"] == "lost"


def test_two_benchmarks_are_not_compared(client):
    answer = client.get("/vlm/samples/compare", params={"a": ONE, "b": "demo/eval/v2pe-tiny/POPE/default"})
    assert answer.status_code == 422 and "two benchmarks" in answer.json()["error"]["message"]


def test_a_picture_is_drawn_anew_as_jpeg(client):
    answer = client.get("/vlm/media", params={"evaluation": ONE, "number": 0, "image": 2, "size": 64})
    assert answer.headers["content-type"] == "image/jpeg" and answer.headers["x-content-type-options"] == "nosniff"
    assert max(Image.open(io.BytesIO(answer.content)).size) == 64


@pytest.mark.parametrize("id_", ["", ".", "..", "../..", "/etc", "study", ONE + "/..", "a\0b", "study/eval", "%2e%2e"])
def test_only_what_was_found_can_be_named(client, id_):
    for path, query in [
        ("media", {"evaluation": id_, "number": 0, "image": 0}),
        ("samples/one", {"evaluation": id_, "number": 0}),
        ("runs/stage", {"id": id_}),
    ]:
        assert client.get(f"/vlm/{path}", params=query).status_code == 404, path
    if id_:
        assert client.get("/vlm/samples", params={"evaluation": id_}).status_code == 404


@pytest.mark.parametrize("path", ["../../etc/passwd", "demo/report/report.json", "demo/../demo/report/index.html", "x"])
def test_only_reports_are_sent_as_reports(client, path):
    assert client.get(f"/vlm/reports/{path.replace('..', '%2e%2e')}").status_code == 404
    assert client.get(f"/view/{path.replace('..', '%2e%2e')}").status_code == 404


def test_a_report_runs_without_an_origin(client):
    answer = client.get("/vlm/reports/demo/report/index.html")
    policy = answer.headers.get_list("content-security-policy")
    assert answer.status_code == 200 and len(policy) == 1
    assert "sandbox allow-scripts" in policy[0] and "allow-same-origin" not in policy[0]
    assert "default-src 'none'" in policy[0]


@pytest.fixture
def shared(tmp_path):
    """A run that somebody sent, whose rows name files of this machine."""
    folder = tmp_path / "runs/theirs/eval/m/POPE/default"
    (tmp_path / "dataset").mkdir()
    (tmp_path / "secret.png").write_bytes(picture())
    (tmp_path / "dataset/page.png").write_bytes(b"<!doctype html><script>window.hit=1</script>")
    (tmp_path / "dataset/drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' onload='hit()'/>")
    (tmp_path / "dataset/link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(tmp_path / "dataset/pipe.png")
    (tmp_path / "dataset/good.png").write_bytes(picture())
    folder.mkdir(parents=True)
    names = [str(tmp_path / "dataset/good.png"), "/elsewhere/dataset/good.png", "good.png"]
    names += [str(tmp_path / "secret.png"), str(tmp_path / "dataset/../secret.png"), str(tmp_path / "dataset/link.png")]
    names += ["/etc/passwd", "../secret.png", "/elsewhere/dataset/../secret.png", "a\0b", "x" * 5000, 5, None, ["a"]]
    names += [str(tmp_path / f"dataset/{n}") for n in ("page.png", "drawing.svg", "pipe.png", "none.png", "")]
    row = {"id": "a", "outcome": "ok", "score": 1.0, "images": names, "prompt": "?", "completion": "yes"}
    (folder / "results.jsonl").write_text(json.dumps(row) + "\n")
    server = Server(app_of(tmp_path))
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client, names
    server.stop()


def picture():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_pictures_come_from_the_data_sets_alone_and_are_pictures(shared):
    client, names = shared
    status = []
    for number in range(len(names)):
        query = {"evaluation": "theirs/eval/m/POPE/default", "number": 0, "image": number}
        answer = client.get("/vlm/media", params=query)
        status.append(answer.status_code)
        assert answer.status_code == 200 or answer.json()["error"]["message"]
    assert status == [200] * 3 + [422] * (len(names) - 3)


@pytest.mark.parametrize(
    "bad",
    [
        "{half",
        "[]",
        "5",
        '{"id": "b"}',
        '{"id": "b", "outcome": "ok", "score": "x", "meta": 3}',
        '{"id": "b", "outcome": "ok", "score": 1, "images": 5, "prompt": 7, "meta": {"placed_depth": "deep"}}',
        '{"id": {"x": 1}, "outcome": ["ok"], "score": NaN, "group": {"a": 1}, "images": {"a": 1}, "gold": {"q": [1]}}',
        "[" * 50_000,
        "\u2028",
    ],
)
def test_damaged_rows_never_break_the_list(tmp_path, bad):
    folder = tmp_path / "runs/r/eval/m/POPE/default"
    folder.mkdir(parents=True)
    good = {"id": "a", "outcome": "ok", "score": 1.0, "images": [], "prompt": "?", "completion": "yes"}
    (folder / "results.jsonl").write_text(f"{json.dumps(good)}\n{bad}\n{json.dumps({**good, 'id': 'z'})}")
    server = Server(app_of(tmp_path))
    try:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            found = asked(client, "samples")
            assert {"a", "z"} <= {row["id"] for row in found["rows"]}
            assert found["total"] == 3 or "1 lines cannot be read" in found["problems"][0]
            for row in found["rows"]:
                answer = client.get(
                    "/vlm/samples/one", params={"evaluation": row["evaluation"], "number": row["number"]}
                )
                assert answer.status_code == 200, answer.text
            assert client.get("/vlm/samples/facets").status_code == 200
    finally:
        server.stop()


def test_results_that_are_written_anew_are_read_anew(tmp_path):
    view_runs.write_samples(tmp_path, 20)
    server = Server(app_of(tmp_path))
    with httpx.Client(base_url=server.url, timeout=30) as client:
        assert asked(client, "samples", evaluation=ONE)["total"] == 20
        path = tmp_path / "runs" / ONE / "results.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:7]))
        assert asked(client, "samples", evaluation=ONE)["total"] == 7
        assert client.get("/vlm/samples/one", params={"evaluation": ONE, "number": 12}).status_code == 404
        shutil.rmtree(tmp_path / "runs/study")
        assert client.get("/vlm/samples/one", params={"evaluation": ONE, "number": 1}).status_code == 404
    server.stop()


def test_the_key_is_asked_for_everything_but_the_empty_pages(home):
    server = Server(app_of(home, key="s3cret; ü"))
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for path in ("runs", "samples", "samples/facets", "media", "about", "reports/demo/report/index.html"):
            assert client.get(f"/vlm/{path}").status_code == 401, path
        assert client.get("/view/runs.html").status_code == 200
        assert client.get("/vlm/about", headers={"Cookie": "vlm-key=s3cret%3B%20%C3%BC"}).status_code == 200
        for cookie in ("vlm-key=wrong", "vlm-key", "vlm-key=", "x" * 9000):
            assert client.get("/vlm/about", headers={"Cookie": cookie}).status_code == 401, cookie
    server.stop()


def test_a_name_that_another_site_pointed_here_is_refused(home):
    server = Server(app_of(home, names=LOCAL))
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/vlm/runs").status_code == 200
        assert client.get("/vlm/runs", headers={"Host": "attacker.example:80"}).status_code == 403
        assert client.get("/vlm/runs", headers={"Origin": "http://attacker.example"}).status_code == 403
    server.stop()
