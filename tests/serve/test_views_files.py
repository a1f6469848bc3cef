"""Reading runs as they are written: new lines alone, torn and damaged ones, files that start anew."""

import json
import os
import socket
import time

import pytest

from vlm.cli.server.views import tail as tail_module
from vlm.cli.server.views.holder import holder_of
from vlm.cli.server.views.runs import Runs, find
from vlm.cli.server.views.samples import Samples
from vlm.cli.server.views.stage import StageLog
from vlm.cli.server.views.tail import Tail
from vlm.core.home import locked, write_json
from vlm.core.progress import Beacon


def line(step, **more):
    return json.dumps({"step": step, "loss": 5 - 0.01 * step, "seconds": 2.0, "data_wait_s": 0.5, "samples": 4} | more)


def stage(folder, n=100, **recipe):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(line(k) + "\n" for k in range(n)))
    about = {"name": "x", "steps": 200, "batch": {"samples": 4}} | recipe
    (folder / "recipe.json").write_text(json.dumps({"recipe": about}))
    return folder


def hold(folder, pid, host=None):
    note = {"purpose": "vlm train", "pid": pid, "host": host or socket.gethostname()}
    (folder / ".lock.json").write_text(json.dumps(note))


def test_only_new_lines_are_read(tmp_path, monkeypatch):
    folder = stage(tmp_path / "r/train/x", n=20_000)
    log, opened = StageLog(folder).look(60), []
    real = tail_module.open_regular

    class Counted:
        def __init__(self, path):
            self.file = real(path)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def seek(self, at):
            self.file.seek(at)

        def read(self, n):
            data = self.file.read(n)
            opened.append(len(data))
            return data

    monkeypatch.setattr(tail_module, "open_regular", Counted)
    assert log.look().head()["step"] == 20_000
    assert opened == []  # nothing changed, nothing was read
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line(20_000) + "\n")
    assert log.look().head()["step"] == 20_001
    assert sum(opened) < 500  # of 2 MB


def test_a_long_file_is_read_piece_by_piece_and_says_how_far_it_is(tmp_path):
    log = StageLog(stage(tmp_path / "r/train/x", n=5000))
    first = log.look(0).head()
    assert 0 < first["step"] < 5000 and 0 < first["read"] < 1
    while log.look(0).head()["read"] < 1:
        pass
    assert log.head()["step"] == 5000
    assert len(log.columns["loss"]) == 5000 and list(log.columns["step"]) == list(range(5000))


def test_a_torn_last_line_waits_for_its_end(tmp_path):
    folder = stage(tmp_path / "r/train/x", n=3)
    whole = line(3) + "\n"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(whole[:20])
        file.flush()
        log = StageLog(folder).look()
        assert log.head()["step"] == 3 and log.head()["damaged"] == 0
        file.write(whole[20:])
    assert log.look().head()["step"] == 4 and log.head()["damaged"] == 0


@pytest.mark.parametrize(
    "bad",
    [
        b"\x00\xff\xfe garbage\n",
        b"{}\n",
        b"[1, 2]\n",
        b'{"step": "five"}\n',
        b'{"step": -1}\n',
        b'{"step": 1e400}\n',
        b'{"step": NaN}\n',
        b"[" * 100_000 + b"\n",
        b'{"step": 1.5, "loss": 2}\n',
        b"\n",
    ],
)
def test_a_damaged_line_is_counted_and_breaks_nothing(tmp_path, bad):
    folder = stage(tmp_path / "r/train/x", n=3)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(bad + line(3).encode() + b"\n")
    with (folder / "ledger.jsonl").open("wb") as file:
        file.write(bad)
    head = StageLog(folder).look().head()
    assert (head["step"], head["damaged"]) == (4, 2)


def test_values_that_are_no_numbers_leave_a_gap_in_the_curve(tmp_path):
    folder = stage(tmp_path / "r/train/x", n=2)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": NaN}\n{"step": 3, "loss": "x", "seconds": true}\n' + line(4) + "\n")
    curves = StageLog(folder).look().curves(100)
    assert [step for step, _ in curves["loss"]] == [0, 1, 4]
    assert [step for step, _ in curves["smooth"]] == [0, 1, 2, 3, 4]


def test_a_file_that_is_cut_or_written_anew_is_read_from_its_start(tmp_path):
    """A resumed training cuts its metrics back to the checkpoint, and may have passed the old size at the next look."""
    folder = stage(tmp_path / "r/train/x", n=50)
    log = StageLog(folder).look()
    temporary = folder / "new"
    temporary.write_text("".join(line(k, loss=1.0) + "\n" for k in range(80)))
    temporary.replace(folder / "metrics.jsonl")
    head = log.look().head()
    assert head["step"] == 80 and set(log.columns["loss"]) == {1.0}
    (folder / "metrics.jsonl").write_text(line(0) + "\n")  # the same file, shorter
    assert log.look().head()["step"] == 1
    (folder / "metrics.jsonl").unlink()
    assert log.look().head()["step"] == 0


def test_a_step_that_was_taken_again_counts_once(tmp_path):
    folder = stage(tmp_path / "r/train/x", n=10)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line(5, loss=9.0) + "\n")
    log = StageLog(folder).look()
    assert list(log.columns["step"]) == [0, 1, 2, 3, 4, 5] and log.columns["loss"][-1] == 9.0


def test_thinned_curves_keep_the_extremes_and_the_ends(tmp_path):
    folder = stage(tmp_path / "r/train/x", n=0)
    values = [1.0] * 5000
    values[3210], values[17] = 50.0, -3.0
    (folder / "metrics.jsonl").write_text("".join(line(k, loss=v) + "\n" for k, v in enumerate(values)))
    curve = StageLog(folder).look(60).curves(200)["loss"]
    assert len(curve) <= 202
    assert [3210.0, 50.0] in curve and [17.0, -3.0] in curve and curve[0][0] == 0 and curve[-1][0] == 4999


def test_the_state_is_who_holds_the_folder(tmp_path):
    folder = stage(tmp_path / "r/train/x")
    assert StageLog(folder).look().head()["state"] == "stopped"
    hold(folder, os.getpid())
    head = StageLog(folder).look().head()
    assert (head["state"], head["steps"], head["left"]) == ("running", 200, 100 * 2.5)
    hold(folder, 2**22 + 1)  # above the largest pid
    assert StageLog(folder).look().head()["state"] == "killed"
    hold(folder, 2**22 + 1, host="another")
    assert StageLog(folder).look().head()["state"] == "running"
    old = time.time() - 3600
    os.utime(folder / "metrics.jsonl", (old, old))
    assert StageLog(folder).look().head()["state"] == "silent"
    (folder / ".lock.json").unlink()
    (folder / "summary.json").write_text("{}")
    assert StageLog(folder).look().head()["state"] == "finished"


@pytest.mark.parametrize("note", ['{"pid": "x", "host": 5}', "{", "[]", '{"pid": 1e99}', '{"pid": -1, "host": "h"}'])
def test_a_damaged_note_of_a_lock_breaks_nothing(tmp_path, note):
    (tmp_path / ".lock.json").write_text(note)
    holder_of(tmp_path)


@pytest.mark.parametrize(
    ("record", "steps"),
    [
        ({"recipe": {"steps": 7}}, 7),
        (
            {
                "lines": {"a": 10},
                "recipe": {"epochs": 2, "batch": {"samples": 4}, "data": [{"file": "a", "repeat": 1.5}]},
            },
            7,
        ),
        ({"lines": {}, "recipe": {"epochs": 2, "batch": {"samples": 0}, "data": [{"file": "a"}]}}, None),
        ({"recipe": 3}, None),
        ({}, None),
    ],
)
def test_planned_steps_are_those_of_the_recipe(tmp_path, record, steps):
    folder = stage(tmp_path / "r/train/x")
    (folder / "recipe.json").write_text(json.dumps(record))
    assert StageLog(folder).look().planned() == steps


def test_the_ledger_adds_up_across_a_change_of_the_batch(tmp_path):
    folder = stage(tmp_path / "r/train/x", n=10)
    record = {
        "recipe": {"steps": 20, "batch": {"samples": 5}},
        "earlier": [{"steps": 4, "recipe": {"batch": {"samples": 4}}}],
    }
    (folder / "recipe.json").write_text(json.dumps(record))
    reason = "/data/a.jpg: no such file"
    lost = [{"step": k, "id": f"a:{k}", "what": "dropped", "stage": "media", "reason": reason} for k in range(4, 10)]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lost))
    ledger = StageLog(folder).look().ledger()
    assert ledger["counts"] == {"in": 46, "used": 40, "dropped": 6, "truncated": 0, "replaced": 0} and ledger["closes"]
    assert ledger["reasons"] == [("dropped", "FILE: no such file", 6)]


def test_a_pipe_in_the_place_of_a_file_never_blocks(tmp_path):
    folder = stage(tmp_path / "r/train/x")
    (folder / "metrics.jsonl").unlink()
    os.mkfifo(folder / "metrics.jsonl")
    evaluation = tmp_path / "r/eval/m/POPE/default"
    evaluation.mkdir(parents=True)
    os.mkfifo(evaluation / "results.jsonl")
    os.mkfifo(evaluation / "summary.json")
    runs = Runs(tmp_path)
    assert [head["step"] for head in runs.overview()["stages"]] == [0]
    assert list(Tail(folder / "metrics.jsonl").read()[1]) == []
    assert Samples(runs).ids() == []


def test_runs_are_found_through_a_link_in_the_folder_and_never_in_a_circle(tmp_path):
    stage(tmp_path / "disk/mine/train/x")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mine").symlink_to(tmp_path / "disk/mine")
    (tmp_path / "disk/mine/train/again").symlink_to(tmp_path / "runs")
    (tmp_path / "disk/mine/train/x/checkpoints/step1").mkdir(parents=True)
    (tmp_path / "disk/mine/train/x/checkpoints/step1/metrics.jsonl").write_text("")
    assert find(tmp_path / "runs")["stages"] == ["mine/train/x"]


def test_a_running_evaluation_shows_progress_and_the_running_score_of_all_its_shards(tmp_path):
    folder = tmp_path / "r/eval/m/POPE/default"
    for k, (done, score) in enumerate([(30, 0.5), (10, 1.0)]):
        work = folder / f"shards/{k}-of-2"
        work.mkdir(parents=True)
        told = {"done": done, "total": 50, "left": 40.0 - 10 * k, "values": {"score": score}}
        (work / "progress.json").write_text(json.dumps(told))
        (work / "run.json").write_text(json.dumps({"options": {"name": "mine"}}))
    hold(folder / "shards/0-of-2", os.getpid())
    (head,) = Runs(tmp_path).overview()["evaluations"]
    assert (head["state"], head["done"], head["total"], head["score"]) == ("running", 40, 100, 62.5)
    assert (head["model"], head["benchmark"], head["left"]) == ("mine", "POPE", 40.0)


def test_what_an_evaluation_writes_of_its_progress_is_what_the_page_reads(tmp_path):
    folder = tmp_path / "r/eval/m/POPE/default"
    with locked(folder, "vlm eval POPE"), Beacon(folder, "POPE", 100, unit="items") as beacon:
        write_json(folder / "run.json", {"options": {"name": "mine"}})
        beacon.update(40, 100, score=0.625)
        (head,) = Runs(tmp_path).overview()["evaluations"]
    assert (head["state"], head["done"], head["total"], head["score"]) == ("running", 40, 100, 62.5)


def test_the_progress_of_a_training_makes_no_evaluation_of_it(tmp_path):
    folder = stage(tmp_path / "r/train/x")
    (folder / "progress.json").write_text(json.dumps({"done": 3, "total": 9}))
    found = find(tmp_path)
    assert found["stages"] == ["r/train/x"] and found["evaluations"] == []


@pytest.mark.parametrize("told", ["{", "[]", '{"done": "x", "total": 5}', '{"done": 1, "total": 2, "values": 5}'])
def test_a_damaged_file_of_progress_is_no_progress(tmp_path, told):
    folder = tmp_path / "r/eval/m/POPE/default"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    (folder / "progress.json").write_text(told)
    (head,) = Runs(tmp_path).overview()["evaluations"]
    assert head["score"] is None and head["state"] == "stopped"


@pytest.mark.parametrize(
    "summary",
    [
        "",
        "{",
        "[]",
        "{}",
        json.dumps(
            {"benchmark": "a", "title": "b", "model": "c", "variant": {"stride": "x"}}
            | {"metrics": [], "outcomes": {}, "data": {}}
        ),
    ],
)
def test_a_damaged_summary_is_shown_as_such(tmp_path, summary):
    folder = tmp_path / "r/eval/m/POPE/default"
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text("")
    (folder / "summary.json").write_text(summary)
    (head,) = Runs(tmp_path).overview()["evaluations"]
    assert head["state"] in ("damaged", "stopped") and (head["damaged"] or not summary)
