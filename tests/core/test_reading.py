"""Files that are no files, and disks that do not answer, are errors at once or in time; nothing blocks."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from vlm.core import reading
from vlm.core.config import load_yaml
from vlm.core.errors import ConfigError, DataError, MediaError, Preempted
from vlm.core.fetch.archive import extract
from vlm.core.home import read_json
from vlm.core.reading import check_regular, is_folder, open_regular, within
from vlm.core.sample.index import LineIndex
from vlm.core.sample.media import image_size, load_image, load_video
from vlm.core.sample.records import iter_jsonl


@pytest.fixture(params=["a named pipe", "a socket", "a device", "a folder"])
def odd(request, tmp_path, monkeypatch):
    """The name of something that is no regular file, and what it is."""
    path = tmp_path / "odd.jpg"
    if request.param == "a named pipe":
        os.mkfifo(path)
    elif request.param == "a socket":
        monkeypatch.chdir(tmp_path)  # the name of a socket has 107 bytes at most
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("odd.jpg")
    elif request.param == "a device":
        path = Path("/dev/zero")
    else:
        path.mkdir()
    return path, request.param


@pytest.mark.parametrize(
    "read",
    [
        load_image,
        image_size,
        lambda path: load_video(path, 2),
        lambda path: list(iter_jsonl(path)),
        read_json,
        load_yaml,
        lambda path: extract(path, {"*": ""}, path.parent / "out"),
        LineIndex,
    ],
    ids=["image", "header", "video", "records", "json", "yaml", "archive", "lines"],
)
def test_what_is_no_regular_file_is_an_error_at_once(read, odd):
    path, kind = odd
    done: list[BaseException] = []

    def run() -> None:
        try:
            read(path)
        except Exception as error:  # noqa: BLE001  # which one it is, is asserted below
            done.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert done, f"reading {kind} blocks"
    assert isinstance(done[0], DataError | ConfigError)
    message = done[0].found
    assert str(path) in message
    assert kind in message or "no such file" in message or "has no frames" in message  # a folder without frames
    assert done[0].fix


@pytest.mark.parametrize("name", ["a\0b.png", "\ud800.png", "x" * 300 + ".png", "a/" * 3000])
@pytest.mark.parametrize("read", [load_image, image_size, lambda path: load_video(path, 2)])
def test_names_that_no_file_can_have_are_errors_that_can_be_printed(name, read):
    with pytest.raises(MediaError) as error:
        read(name)
    assert len(error.value.found) < 400
    error.value.found.encode()
    check_regular(name)
    assert not is_folder(name)


def test_a_file_is_read_as_any_other(tmp_path):
    content = os.urandom(200_000)
    (tmp_path / "a").write_bytes(content)
    with open_regular(tmp_path / "a") as file:
        assert file.read(10) == content[:10]
        assert file.seek(-7, os.SEEK_END) == len(content) - 7
        assert file.read() == content[-7:]
        assert file.seek(0) == file.tell() == 0
        assert file.read() == content
        with pytest.raises(OSError, match="-1"):
            file.seek(-1)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "b")


@pytest.fixture
def stalled(tmp_path, monkeypatch):
    """A picture on a disk that answers no read; `event.set()` lets it answer again."""
    Image.effect_noise((600, 600), 90).save(tmp_path / "a.png")
    event, pread = threading.Event(), os.pread

    def hang(file, n, at):
        event.wait(20)
        return pread(file, n, at)

    monkeypatch.setattr(reading, "READ_SECONDS", 0.2)
    monkeypatch.setattr(os, "pread", hang)
    yield tmp_path / "a.png", event
    event.set()


@pytest.mark.parametrize("read", [load_image, image_size, lambda path: load_video(path, 2)])
def test_a_disk_that_does_not_answer_costs_one_sample_and_not_the_run(read, stalled, monkeypatch):
    path, event = stalled
    began = time.monotonic()
    with pytest.raises(MediaError, match=r"a.png did not answer for 0.2 s"):
        read(path)
    assert time.monotonic() - began < 15
    event.set()
    monkeypatch.setattr(reading, "READ_SECONDS", 60)
    assert load_image(path).size == (600, 600)  # the next read has a thread of its own


def test_a_process_ends_although_a_read_hangs():
    code = """if True:
        import time
        from vlm.core.errors import DataError
        from vlm.core.reading import within
        try:
            within(0.1, "disk", lambda: time.sleep(600))
        except DataError as error:
            print(error.found)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "disk did not answer for 0.1 s\n")


def test_a_process_that_was_suspended_has_not_waited():
    code = """if True:
        import os, signal, time
        from vlm.core.reading import within
        def read():
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGSTOP)
            for _ in range(9):
                time.sleep(0.1)
            return "read"
        print(within(3.5, "disk", read))
    """
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        os.waitpid(child.pid, os.WUNTRACED)
        time.sleep(4)
        child.send_signal(signal.SIGCONT)
        assert child.communicate(timeout=60)[0] == "read\n"
    finally:
        child.kill()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_what_a_task_raises_is_raised_and_a_forked_process_has_its_own_thread():
    with pytest.raises(ZeroDivisionError):
        within(5, "x", lambda: 1 // 0)
    assert within(5, "x", lambda: 7) == 7
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = within(5, "x", lambda: 9)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_signals_are_answered_while_a_read_hangs():
    def stop(*_):
        raise Preempted("stop")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    began = time.monotonic()
    try:
        with pytest.raises(Preempted):
            within(30, "disk", lambda: time.sleep(20))
        assert time.monotonic() - began < 15
    finally:
        signal.signal(signal.SIGALRM, before)
    assert within(5, "x", lambda: 7) == 7


def test_a_thread_that_ends_takes_its_reader_along():
    before = {thread for thread in threading.enumerate() if thread.name == "file reader"}
    caller = threading.Thread(target=lambda: within(5, "x", lambda: None))
    caller.start()
    caller.join()
    del caller
    until = time.monotonic() + 5
    while {t for t in threading.enumerate() if t.name == "file reader"} - before and time.monotonic() < until:
        time.sleep(0.01)
    assert {t for t in threading.enumerate() if t.name == "file reader"} <= before
