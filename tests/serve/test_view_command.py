"""`vlm view` as a person starts it: an address after a moment, no model, nothing written, a clear end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from support import view_runs


def start(home, *words, **environment):
    command = [sys.executable, "-m", "vlm.cli.main", "view", "--port", "0", *words]
    # a session of its own: Ctrl-C of whoever runs the tests is not for it
    return subprocess.Popen(
        command,
        env={**os.environ, "VLM_HOME": str(home), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processor_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def files_below(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_it_starts_in_a_moment_without_torch_reads_only_and_ends_on_ctrl_c(tmp_path):
    view_runs.write_samples(tmp_path, 30)
    before = files_below(tmp_path)
    process = start(tmp_path)
    try:
        address = process.stdout.readline().split()[0]
        assert processor_seconds(process.pid) < 2  # of the processor: a busy machine must not decide
        assert httpx.get(f"{address}/", follow_redirects=True, timeout=30).url.path == "/view/runs.html"
        while "reading" in (found := httpx.get(f"{address}/vlm/samples", timeout=30).json()):
            pass
        assert found["total"] == 60
        picture = {"evaluation": found["rows"][0]["evaluation"], "number": 0, "image": 0}
        assert httpx.get(f"{address}/vlm/media", params=picture, timeout=30).status_code == 200
        assert "torch" not in Path(f"/proc/{process.pid}/maps").read_text()
        assert files_below(tmp_path) == before
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "ended\n", "")


def test_a_folder_and_pictures_of_another_place_are_shown(tmp_path):
    view_runs.write_samples(tmp_path / "theirs", 30)
    (tmp_path / "mine").mkdir()
    process = start(
        tmp_path / "mine", str(tmp_path / "theirs/runs"), "--allow-outside", str(tmp_path / "theirs/dataset")
    )
    try:
        address = process.stdout.readline().split()[0]
        query = {"evaluation": "study/eval/v2pe-32k/digit-haystack/stride64", "number": 0, "image": 0}
        assert httpx.get(f"{address}/vlm/media", params=query, timeout=30).status_code == 200
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["nowhere"], {}, "no such folder"),
        (["--api-key-env", "NONE_SUCH"], {}, "no such environment variable"),
        (["--host", "203.0.113.7"], {}, "cannot listen on 203.0.113.7"),
    ],
)
def test_what_cannot_start_says_why(tmp_path, words, environment, said):
    (tmp_path / "runs").mkdir()
    process = start(tmp_path, *words, **environment)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (2, 3) and said in err and "Traceback" not in err
