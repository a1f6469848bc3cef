"""`vlm watch`: the state of trainings and evaluations, told from their files alone."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vlm.cli.live import SILENT, find_work, read_work
from vlm.cli.show.watch import work_lines
from vlm.core.errors import UnknownName
from vlm.core.home import write_atomic
from vlm.core.progress import BEACON


def watch(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "VLM_HOME": str(home), "NO_COLOR": "1", "COLUMNS": "200"}
    line = [sys.executable, "-m", "vlm.cli.main", "watch", *words]
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=120, cwd=home)


def beacon(folder: Path, *, age: float = 0.0, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    now = time.time() - age
    state = {"done": 3, "total": 10, "left": 70.0, "started": now - 30, "moved": now, "ended": None, "why": ""}
    state |= {"title": "a", "unit": "steps", "host": "node7", "pid": 1, "values": {}, **changes}
    write_atomic(folder / BEACON, json.dumps(state))  # as trainings do: somebody may be reading
    os.utime(folder / BEACON, (now, now))


def training(folder: Path, steps: int = 3, *, lost: int = 1, model: bool = False) -> Path:
    """A stage folder of steps of 4 samples; `lost` of them are dropped in the last step."""
    folder.mkdir(parents=True)
    recipe = {"name": folder.name, "batch": {"samples": 4}}
    (folder / "recipe.json").write_text(json.dumps({"recipe": recipe}))
    lines = []
    for step in range(steps):
        used = 4 - (lost if step == steps - 1 else 0)
        numbers = {"loss": 2.0 - step / 10, "lr": 1e-4, "tokens_per_s": 1000.0 + step, "seconds": 2.0, "memory_gb": 5.5}
        lines.append({"step": step, "samples": used, "data_wait_s": 0.25, **numbers})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    dropped = [
        {"step": steps - 1, "id": f"a:{i}", "what": "dropped", "stage": "media", "reason": "x"} for i in range(lost)
    ]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in dropped))
    if model:
        (folder / "model").mkdir()
        (folder / "model/config.json").write_text("{}")
    return folder


def evaluation(folder: Path, kinds: list[str], *, score: float | None = None, summary: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"key": f"{folder.name}{i}", "id": str(i), "outcome": kind, "completion": "a"} for i, kind in enumerate(kinds)
    ]
    (folder / "outcomes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if summary:
        counts = {kind: kinds.count(kind) for kind in kinds}
        (folder / "summary.json").write_text(json.dumps({"outcomes": counts, "metrics": [{"value": score}]}))
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    return tmp_path


def test_a_running_training_shows_loss_speed_time_left_wait_and_ledger(home: Path) -> None:
    beacon(training(home / "runs/demo/train/sft"), age=4)
    done = watch("--once", home=home)
    assert done.returncode == 0, done.stderr
    first, numbers, ledger = done.stdout.splitlines()
    assert first.startswith("training demo/train/sft: running, 3 of 10 steps (30 %), 1 min ")
    assert "last sign of life" in first and first.endswith("ago on node7")
    assert "loss 1.8000 (mean of the last steps 1.9000), lr 0.0001, 1,001 tokens/s" in numbers
    assert "2 s a step and 0.25 s of waiting for data, 5.5 GB" in numbers
    assert ledger.strip() == "ledger: in 12 = used 11 + dropped 1 + truncated 0 + replaced 0"


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"age": 5}, "running", "last sign of life"),
        ({"age": SILENT + 1000}, "silent", "no sign of life for 18 min"),
        ({"age": 5, "moved": time.time() - 3605}, "running", "alive on node7, but no step for 1 h"),
        ({"age": 9000, "ended": "stopped"}, "stopped", "stopped, 3 of 10 steps (30 %)"),
        ({"age": 9000, "ended": "failed", "why": "loss is nan at step 3"}, "failed", "loss is nan at step 3"),
    ],
)
def test_alive_killed_hanging_stopped_and_failed_are_told_apart(
    home: Path, changes: dict, status: str, said: str
) -> None:
    """By the age of its file: the process may be of another machine, whose pids say nothing here."""
    folder = training(home / "runs/demo/train/sft")
    beacon(folder, **changes)
    state = read_work(folder)
    assert state.status == status and said in "\n".join(work_lines(state))


def test_a_finished_training_says_where_its_model_is(home: Path) -> None:
    beacon(training(home / "runs/demo/train/sft", 10, model=True), done=10, ended="finished", age=99999)
    assert watch("demo", "--once", home=home).stdout.splitlines()[0] == "training demo/train/sft: finished, 10 steps"
    assert "its model: runs/demo/train/sft/model" in watch("demo", "--once", home=home).stdout


def test_runs_of_earlier_versions_without_a_progress_file_are_shown(home: Path) -> None:
    folder = training(home / "runs/old/train/a", model=True)
    assert read_work(folder).status == "finished" and read_work(folder).done == 3
    folder = training(home / "runs/old/train/b")
    assert read_work(folder).status == "running"
    os.utime(folder / "metrics.jsonl", (1e9, 1e9))
    assert read_work(folder).status == "silent"


def test_evaluations_show_their_progress_score_and_outcomes(home: Path) -> None:
    beacon(evaluation(home / "runs/eval/m/pope/default", ["ok", "ok", "error"]), values={"score": 0.625}, unit="items")
    evaluation(home / "runs/eval/m/mme/default", ["ok", "ok"], score=0.5, summary=True)
    out = watch("--once", home=home).stdout.splitlines()
    assert out[0].startswith("evaluation eval/m/pope/default: running, 3 of 10 items (30 %)"), "what runs comes first"
    assert out[1:3] == ["  score 62.5", "  outcomes: error 1, ok 2"]
    assert out[3:] == [
        "evaluation eval/m/mme/default: finished, 2 items",
        "  score 50.0",
        "  outcomes: ok 2",
        "  its results: runs/eval/m/mme/default",
    ]


def test_shards_are_summed_and_the_one_that_gathers_them_is_not_counted_twice(home: Path) -> None:
    folder = home / "runs/eval/m/pope/default"
    for i, age in enumerate((5, 9)):
        beacon(evaluation(folder / f"shards/{i}-of-2", ["ok"]), age=age, total=5, left=10.0 * i)
    assert list(find_work(home / "runs")) == [folder]
    state = read_work(folder)
    assert (state.status, state.done, state.total, state.ledger) == ("running", 6, 10, {"ok": 2})
    beacon(folder, done=10, total=10)
    assert (read_work(folder).done, read_work(folder).total) == (10, 10)


def test_names_of_runs_stages_and_paths_are_found_and_others_get_the_nearest(home: Path) -> None:
    beacon(training(home / "runs/demo/train/sft"))
    for name in ("demo", "sft", "demo/train/sft", str(home / "runs/demo"), "runs/demo"):
        assert watch(name, "--once", home=home).stdout.startswith("training demo/train/sft: running")
    done = watch("dmo", "--once", home=home)
    assert done.returncode == UnknownName.exit_code and "did you mean demo" in done.stderr


def test_nothing_to_watch_is_said_with_a_way_out(tmp_path: Path) -> None:
    done = watch("--once", home=tmp_path)
    assert done.returncode == 3 and "no training and no evaluation" in done.stderr and "vlm list recipes" in done.stderr


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"done": "x", "moved": null}', b"\xff\x00"])
@pytest.mark.parametrize(
    "name", [BEACON, "metrics.jsonl", "ledger.jsonl", "recipe.json", "summary.json", "outcomes.jsonl"]
)
def test_damaged_files_end_no_watch(home: Path, name: str, content: bytes) -> None:
    beacon(training(home / "runs/a/train/sft"))
    beacon(evaluation(home / "runs/a/eval/m/b/default", ["ok"], score=1.0, summary=True), ended="finished")
    for folder in find_work(home / "runs"):
        if (folder / name).exists():
            (folder / name).write_bytes(content)
    for folder in find_work(home / "runs"):
        assert work_lines(read_work(folder))


def test_json_has_the_same_state_and_a_terminal_is_refreshed_until_nothing_runs(home: Path) -> None:
    folder = training(home / "runs/demo/train/sft")
    beacon(folder)
    found = json.loads(watch("--json", home=home).stdout)
    assert (found[0]["status"], found[0]["done"], found[0]["ledger"]["in"]) == ("running", 3, 12)
    ours, theirs = pty.openpty()
    env = {**os.environ, "VLM_HOME": str(home), "COLUMNS": "150", "TERM": "xterm"}
    line = [sys.executable, "-m", "vlm.cli.main", "watch", "demo", "--every", "0.1"]
    child = subprocess.Popen(line, stdout=theirs, stderr=theirs, env=env, cwd=home)
    os.close(theirs)
    seen, until = "", time.monotonic() + 60
    while child.poll() is None and time.monotonic() < until:
        if "running, 3 of 10" in seen:
            beacon(folder, done=10, ended="stopped")
        if select.select([ours], [], [], 0.1)[0]:
            try:
                seen += os.read(ours, 65536).decode()
            except OSError:  # the other end is closed
                break
    assert child.wait(60) == 0
    os.close(ours)
    assert "running, 3 of 10" in seen and "stopped, 10 of 10" in seen
