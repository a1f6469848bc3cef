"""Start several ranks of one command on this machine, without torch in the parent; and the lines of other launchers.

>>> launch(["vlm", "train", "--recipe", "quickstart-v2pe-sft"], processes=2)                # doctest: +SKIP

It is not torchrun, which reads `--run` as an abbreviation of its own option and prints its traceback before ours.
"""

import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from vlm.core.errors import ConfigError, VlmError

LAUNCHER = "VLM_LAUNCHER"
LAUNCHERS = ("srun", "torchrun", "vlm")
GRACE = 10.0  # seconds for the other ranks to end by themselves once one has failed


def free_port() -> int:
    """Return a TCP port that was free a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def launch_line(
    options: list[str],
    *,
    nodes: int,
    gpus_per_node: int,
    launcher: str,
    inside: bool = False,
    job: Mapping[str, str | None] | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Return the (command, environment) that starts `vlm train OPTIONS` on `nodes` x `gpus_per_node` processes.

    Args:
        options: of `vlm train`.
        nodes: machines.
        gpus_per_node: processes on each.
        launcher: `srun`; `torchrun`, a line for each node, with NODE_RANK and MASTER_ADDR in the environment; or `vlm`,
            our own, on one node.
        inside: whether srun runs in an allocation, whose GPUs it takes; outside of one it asks for them.
        job: partition, account and time that srun asks for; None is left out.

    Raises:
        ConfigError: several nodes with our own launcher; what only srun takes with another.
    """
    asked = [f"--{name}={value}" for name, value in (job or {}).items() if value is not None]
    if asked and launcher != "srun":
        raise ConfigError(f"{' '.join(asked)} with {launcher}", expected="--launcher srun", fix="leave it out")
    total, train = nodes * gpus_per_node, ["vlm", "train", *options]
    expect = {"VLM_EXPECT_WORLD": str(total)}
    if launcher == "srun":
        shape = [f"--nodes={nodes}", f"--ntasks-per-node={gpus_per_node}", "--kill-on-bad-exit=1"]
        return ["srun", *shape, *asked, *([] if inside else [f"--gpus-per-node={gpus_per_node}"]), *train], expect
    if launcher == "torchrun":
        shape = [f"--nproc-per-node={gpus_per_node}"]
        if nodes > 1:
            shape += [
                f"--nnodes={nodes}",
                "--node-rank=$NODE_RANK",
                "--master-addr=$MASTER_ADDR",
                "--master-port=29500",
            ]
        # behind `--`, because torchrun reads `--run` as one of its own
        return ["torchrun", *shape, "-m", "--", "vlm.cli.main", "train", *options], expect
    if nodes > 1:
        raise ConfigError(f"{nodes} nodes without srun", expected="--launcher srun or torchrun", fix="run inside Slurm")
    return [*train, *(["--processes", str(gpus_per_node)] if gpus_per_node > 1 else [])], {}


def as_typed(command: list[str], env: dict[str, str]) -> str:
    """Return a command with its environment as a line for a shell; `$NAME` stays a variable."""
    words = [w if "$" in w else shlex.quote(w) for w in command]
    return " ".join([f"{key}={value}" for key, value in env.items()] + words)


def launch(
    command: list[str], processes: int, logs: Path | None = None, *, own: Sequence[Mapping[str, str]] | None = None
) -> int:
    """Run `command` as `processes` ranks; return 0 when all succeed, else the exit code of the first that failed.

    Signals are forwarded to every rank. Only the first rank's output is shown, and that of another that failed first.

    Args:
        command: of every rank.
        processes: number of ranks.
        own: variables of each rank.
        logs: folder to which the other ranks' output is added, as `rank-1.log` and so on; it is lost by default.
    """
    env = {**os.environ, "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    env.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    env[LAUNCHER] = str(os.getpid())
    with ExitStack() as opened:
        files = [opened.enter_context(log_of(rank, logs)) for rank in range(1, processes)]
        begins = [os.fstat(file.fileno()).st_size for file in files]
        ranks = [
            subprocess.Popen(
                command,
                env={**env, "RANK": str(r), "LOCAL_RANK": str(r), **(own[r] if own else {})},
                stdout=log,
                stderr=log,
                process_group=0,
            )
            for r, log in enumerate([None, *files])
        ]
        with forwarded(ranks):
            failed = wait(ranks)
        code = 0 if failed is None else ranks[failed].returncode
        if failed is not None and (failed or code < 0):
            sys.stderr.write(f"rank {failed} failed first:{f' {killed_by(-code)}' if code < 0 else ''}\n")
        if failed:
            files[failed - 1].seek(begins[failed - 1])
            sys.stderr.write(files[failed - 1].read().decode(errors="replace") or "it wrote nothing\n")
            if logs is not None and isinstance(files[failed - 1].name, str):  # a number where it has no name
                sys.stderr.write(f"its log: {files[failed - 1].name}\n")
    return code if code >= 0 else 128 - code


def log_of(rank: int, logs: Path | None) -> IO[bytes]:
    """Open the file that a rank's output is added to: of its own in `logs`; without a name where that is impossible."""
    if logs is not None:
        try:
            logs.mkdir(parents=True, exist_ok=True)
            return (logs / f"rank-{rank}.log").open("a+b")
        except OSError:  # the first rank says what is wrong with the folder
            pass
    return tempfile.TemporaryFile()


def killed_by(number: int) -> str:
    """Return what the end by a signal means.

    >>> killed_by(9)
    'killed by SIGKILL (signal 9), as the system does when memory runs out'
    """
    why = ", as the system does when memory runs out" if number == signal.SIGKILL else ""
    return f"killed by {signal.Signals(number).name} (signal {number}){why}"


@contextmanager
def forwarded(ranks: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Forward signals to every rank."""

    def forward(number: int, _: Any) -> None:
        for rank in ranks:
            rank.send_signal(number)

    before = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def wait(ranks: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all; return the first rank that failed, or None. Others are killed GRACE seconds after a failure.

    Of ranks that failed at the same time it is one that a signal killed: the loss of a peer ends the others.
    Where the first rank ends by the same error of ours, it is the first: its words are on the terminal already.
    """
    failed, deadline = None, float("inf")
    while any(rank.poll() is None for rank in ranks):
        if failed is None:
            failed = first_failed(ranks)
            deadline = time.monotonic() + GRACE if failed is not None else deadline
        if time.monotonic() > deadline:
            for rank in ranks:
                rank.kill()
        time.sleep(0.05)
    failed = failed if failed is not None else first_failed(ranks)
    return 0 if failed and ranks[0].returncode == ranks[failed].returncode > VlmError.exit_code else failed


def first_failed(ranks: list[subprocess.Popen[bytes]]) -> int | None:
    """Return a rank that has failed, one that a signal killed if there is one; None while none has."""
    codes = {i: rank.poll() or 0 for i, rank in enumerate(ranks)}
    return min((i for i, code in codes.items() if code), key=lambda i: (codes[i] > 0, i), default=None)


def end_with_launcher() -> None:
    """Have the kernel send this rank SIGTERM when the launcher dies, however it dies."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(launcher):  # it died before the line above
        sys.exit(143)
