"""Progress in a log, on a terminal, and in the file that other processes read."""

import json
import os
import pty
import subprocess
import sys
import time

import pytest

from vlm.core.errors import DataError, Preempted
from vlm.core.progress import BEACON, Beacon, Progress, Tempo, byte_bar, duration, line_seconds, speed


def run(code: str, *, seconds: str = "0", stderr=subprocess.PIPE) -> subprocess.Popen:
    env = {**os.environ, "VLM_PROGRESS_SECONDS": seconds, "FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "120"}
    lines = "from vlm.core.progress import *\n" + code
    return subprocess.Popen([sys.executable, "-c", lines], stdout=subprocess.PIPE, stderr=stderr, text=True, env=env)


STEPS = """
with Progress("stage[red]1", 4, unit="steps") as bar:
    bar.say(["dropped [a]"])
    for step in range(1, 5): bar.update(step, note=f"loss {step}.0")
"""


def test_a_log_gets_plain_lines_with_amount_note_rate_and_time_left():
    out, err = run(STEPS).communicate()
    lines = err.splitlines()
    assert out == "" and lines[0] == "dropped [a]" and len(lines) == 5
    assert [line.partition(" ")[2].partition(" (")[0] for line in lines[1:]] == [
        f"stage[red]1: {i} of 4 steps" for i in range(1, 5)
    ]
    assert "(50 %), loss 2.0, " in lines[2] and "steps/s" in lines[2] and " left" in lines[2]
    assert "left" not in lines[4] and "\x1b" not in err and "\r" not in err


def test_what_is_done_within_the_interval_says_nothing_and_a_long_one_speaks_at_most_so_often():
    assert run(STEPS.replace('    bar.say(["dropped [a]"])\n', ""), seconds="30").communicate()[1] == ""
    code = 'import time\nwith byte_bar("x") as r:\n for i in range(60): r(i * 1000, 60000); time.sleep(0.02)'
    lines = run(code, seconds="0.25").communicate()[1].splitlines()
    assert 2 <= len(lines) <= 6 and all("kB of 60.0 kB" in line and "kB/s" in line for line in lines)


def test_a_terminal_gets_a_bar_and_no_lines():
    ours, theirs = pty.openpty()
    child = run(STEPS, stderr=theirs)
    os.close(theirs)
    child.communicate(timeout=30)
    seen = os.read(ours, 65536).decode()
    os.close(ours)
    assert "━" in seen and "4 of 4 steps (100 %), loss 4.0" in seen and "stage[red]1" in seen


def test_a_log_that_is_gone_ends_no_work():
    read, write = os.pipe()
    os.close(read)
    child = run(STEPS + "print('done')", stderr=write)
    os.close(write)
    assert child.communicate()[0] == "done\n" and child.returncode == 0


def test_invisible_work_says_nothing(capsys):
    with Progress("x", 3, seconds=0, visible=False) as bar:
        bar.update(1)
        bar.say(["a"])
    with byte_bar("x", enabled=False) as report:
        report(1, 2)
    assert capsys.readouterr().err == ""


def test_without_a_bar_a_log_still_has_its_lines(capsys):
    with Progress("x", 3, unit="steps", seconds=0, bar=False) as bar:
        bar.update(1)
    assert "x: 1 of 3 steps" in capsys.readouterr().err


def test_the_interval_comes_from_the_environment_and_is_thirty_seconds_otherwise(monkeypatch):
    monkeypatch.delenv("VLM_PROGRESS_SECONDS", raising=False)
    assert line_seconds() == 30
    monkeypatch.setenv("VLM_PROGRESS_SECONDS", "1.5")
    assert line_seconds() == 1.5
    monkeypatch.setenv("VLM_PROGRESS_SECONDS", "soon")
    assert line_seconds() == 30


def test_work_done_before_does_not_count_as_speed():
    tempo = Tempo()
    assert tempo.rate(500, 10.0) is None
    tempo.mark(500, 10.0)
    assert tempo.rate(510, 20.0) == 1.0 and tempo.left(510, 560, 20.0) == 50.0
    for i in range(20):  # slower since: the last ten marks count
        tempo.mark(510 + i, 30.0 + 10 * i)
    assert tempo.rate(530, 230.0) == pytest.approx(0.1, rel=0.2)
    tempo.mark(0, 300.0)  # it began anew
    assert tempo.rate(10, 310.0) == 1.0
    assert duration(3600) == "1 h" and speed(0.5, "items") == "2.0 s each"


def test_a_beacon_says_how_far_work_is_and_how_it_ended(tmp_path):
    def read():
        return json.loads((tmp_path / BEACON).read_text())

    with Beacon(tmp_path, "a", 10, unit="steps") as beacon:
        assert not (tmp_path / BEACON).exists(), "what is refused before its first step leaves nothing"
        beacon.update(0)
        assert read()["done"] == 0 and read()["ended"] is None and read()["pid"] == os.getpid()
        beacon.update(4, score=0.5)
        beacon.write()
        assert (read()["done"], read()["total"], read()["values"]) == (4, 10, {"score": 0.5})
    assert read()["ended"] == "finished" and not beacon.thread.is_alive()
    for error, ended, why in (
        (Preempted("x"), "stopped", ""),
        (KeyboardInterrupt(), "stopped", ""),
        (DataError("loss is nan"), "failed", "loss is nan"),
    ):
        with pytest.raises(type(error)), Beacon(tmp_path, "a", 10, unit="steps") as beacon:
            beacon.update(1)
            raise error
        assert (read()["ended"], read()["why"]) == (ended, why)


def test_a_beacon_gives_signs_of_life_while_nothing_moves(tmp_path, monkeypatch):
    monkeypatch.setattr("vlm.core.progress.BEAT", 0.02)
    with Beacon(tmp_path, "a", 10, unit="steps") as beacon:
        beacon.update(1)
        before, until = (tmp_path / BEACON).stat().st_mtime_ns, time.monotonic() + 10
        while (tmp_path / BEACON).stat().st_mtime_ns == before and time.monotonic() < until:
            time.sleep(0.01)
        assert (tmp_path / BEACON).stat().st_mtime_ns > before


def test_a_beacon_that_cannot_be_written_ends_no_work(tmp_path):
    (tmp_path / "file").write_text("")
    with Beacon(tmp_path / "file", "a", 10, unit="steps") as beacon:
        beacon.update(1)
    with Beacon(tmp_path / "b", "a", 10, unit="steps", writes=False) as beacon:
        beacon.update(1)
    assert not (tmp_path / "b").exists()
