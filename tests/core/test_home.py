"""The lock of a folder."""

import json
import os
import threading

import pytest
from filelock import FileLock

from vlm.core.errors import LockedError
from vlm.core.home import locked


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
