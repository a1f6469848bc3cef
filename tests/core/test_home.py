"""The lock of a folder, and temporary folders."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from vlm.core.errors import LockedError
from vlm.core.home import locked, scratch


def test_a_lock_names_its_holder_even_when_the_holder_has_only_just_taken_it(tmp_path):
    """A holder takes the kernel's lock first and says who it is a moment later."""
    said = json.dumps({"purpose": "vlm train", "pid": 4711, "host": "elsewhere"})
    (tmp_path / ".lock.json").write_text("")
    with FileLock(tmp_path / ".lock"):
        late = threading.Timer(0.2, (tmp_path / ".lock.json").write_text, [said])
        late.start()
        with pytest.raises(LockedError, match='"pid": 4711'), locked(tmp_path, "vlm eval"):
            pass
        late.join()


def test_a_held_folder_is_refused_and_free_again_afterwards(tmp_path):
    with (
        locked(tmp_path, "vlm train"),
        pytest.raises(LockedError, match=rf'"vlm train", "pid": {os.getpid()}'),
        locked(tmp_path, "vlm eval"),
    ):
        pass
    with locked(tmp_path, "vlm eval"):
        assert json.loads((tmp_path / ".lock.json").read_text())["purpose"] == "vlm eval"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_held_by_a_file_that_a_killed_holder_does_not_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path, "vlm train"):
        with pytest.raises(LockedError, match='"vlm train"') as error, locked(tmp_path, "vlm eval"):
            pass
        assert ".lock.soft" in (error.value.fix or "")
    with locked(tmp_path, "vlm eval"):
        pass
    code = "import fcntl, os, sys; from pathlib import Path; from vlm.core.home import locked\n"
    code += f"def no(*_): raise OSError({number}, 'no')\nfcntl.flock = no\n"
    code += "held = locked(Path(sys.argv[1]), 'killed')\nheld.__enter__()\nos.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    assert (tmp_path / ".lock.soft").exists()
    with locked(tmp_path, "vlm train", wait=5):
        pass


def test_another_error_of_the_disk_is_not_taken_for_a_held_folder(tmp_path: Path, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output"), locked(tmp_path, "vlm train"):
        pass


def test_temporary_folders_of_killed_processes_are_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left, fresh, foreign = (tmp_path / name for name in ("mine-left", "mine-fresh", "another-left"))
    for folder in (left, fresh, foreign):
        folder.mkdir()
        (folder / "picture.png").write_bytes(b"x")
    os.utime(left, (0, 0))
    os.utime(foreign, (0, 0))
    with scratch("mine") as folder:
        os.utime(folder, (0, 0))
        with scratch("mine") as other:
            assert folder.exists() and other.exists() and other != folder  # one that is in use stays
        assert not left.exists() and fresh.exists() and foreign.exists() and not other.exists()
    assert not folder.exists()
