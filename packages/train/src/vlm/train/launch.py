"""Several ranks of one command on this machine, without torch in the parent (Slurm starts its own by `srun`).

Not torchrun: it takes `--run` for an abbreviation of its own flag, and puts its exit code and traceback before ours.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

LAUNCHER = "VLM_LAUNCHER"
GRACE = 10.0  # seconds for the other ranks to end by themselves once one has failed


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def launch(command: list[str], processes: int) -> int:
    """Run `command` as `processes` ranks; 0 when all succeed, else the exit code of the first that failed.

    Signals go on to every rank. Only the first rank speaks; what another wrote is shown if it failed first.
    """
    env = {**os.environ, "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    env.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    env[LAUNCHER] = str(os.getpid())
    with ExitStack() as opened:
        files = [opened.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in range(1, processes)]
        ranks = [
            subprocess.Popen(
                command, env={**env, "RANK": str(r), "LOCAL_RANK": str(r)}, stdout=log, stderr=log, process_group=0
            )
            for r, log in enumerate([None, *files])
        ]
        with forwarded(ranks):
            failed = wait(ranks)
        if failed:
            files[failed - 1].seek(0)
            sys.stderr.write(f"rank {failed} failed first:\n{files[failed - 1].read()}")
    code = 0 if failed is None else ranks[failed].returncode
    return code if code >= 0 else 128 - code


@contextmanager
def forwarded(ranks: list[subprocess.Popen]) -> Iterator[None]:
    """Signals to us go to every rank."""

    def forward(number: int, _: Any) -> None:
        for rank in ranks:
            rank.send_signal(number)

    before = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def wait(ranks: list[subprocess.Popen]) -> int | None:
    """Wait for all; the first rank that failed, or None. The rest of a broken group is killed after a grace."""
    failed, deadline = None, float("inf")
    while any(rank.poll() is None for rank in ranks):
        if failed is None:
            failed = next((i for i, rank in enumerate(ranks) if rank.poll()), None)
            deadline = time.monotonic() + GRACE if failed is not None else deadline
        if time.monotonic() > deadline:
            for rank in ranks:
                rank.kill()
        time.sleep(0.05)
    return failed if failed is not None else next((i for i, rank in enumerate(ranks) if rank.returncode), None)


def end_with_launcher() -> None:
    """In a rank: be asked to stop (SIGTERM) when the launcher dies, however it dies."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(launcher):  # it died before the line above
        sys.exit(143)
