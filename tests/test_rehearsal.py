"""The rehearsal on the pretended device, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.timeout(900)
def test_everything_that_runs_on_a_gpu_runs_on_a_device_that_refuses_cpu_tensors() -> None:
    command = [sys.executable, "-m", "pytest", "-rf", "-p", "no:cacheprovider", str(TESTS / "rehearsal")]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
