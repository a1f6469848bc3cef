"""Ranks under `srun` without torchrun, and a single error message when one of them fails.

>>> adopt()          # RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT as torchrun would have set them

A bare `srun` starts one task on each node where the job asked for more, without an error. `EXPECT` says how many there
must be, so that a world of 2 is never mistaken for one of 8.
"""

import itertools
import os
import re
import socket
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

from vlm.core.errors import ConfigError, Preempted

EXPECT = "VLM_EXPECT_WORLD"
"""Number of processes that a run must have; `vlm launch` sets it."""


def expand(nodes: str) -> list[str]:
    """List the hosts of a node list: `n[1-3,05],login` -> n1, n2, n3, n05, login. Raises ConfigError if it is none."""
    if nodes.count("[") != nodes.count("]") or not nodes:
        raise ConfigError(f"node list {nodes!r}", expected="as Slurm writes it: n[1-3,5],login")
    hosts = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes):
        pieces = [expand_ranges(p[1:-1]) if p.startswith("[") else [p] for p in re.findall(r"\[[^\]]*\]|[^\[]+", part)]
        hosts += ["".join(combination) for combination in itertools.product(*pieces)]
    return hosts


def expand_ranges(ranges: str) -> list[str]:
    """Expand `1-3,05` to 1, 2, 3, 05; leading zeros stay. Raises ConfigError for others."""
    numbers = []
    for item in ranges.split(","):
        first, _, last = item.partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            raise ConfigError(f"node range {item!r}", expected="numbers: 1-3,5")
        numbers += [f"{i:0{len(first)}d}" for i in range(int(first), int(last or first) + 1)]
    return numbers


def describe(env: MutableMapping[str, str]) -> dict[str, str]:
    """Return torchrun's variables for an `srun` task; empty outside of one, and where a launcher has set them."""
    if "RANK" in env or "SLURM_STEP_ID" not in env or "SLURM_PROCID" not in env:
        return {}  # the shell of a batch job has a SLURM_PROCID too, but no step
    size = env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS", "1")
    if size == "1" and EXPECT not in env:
        return {}
    job, step = int(env.get("SLURM_JOB_ID", "0")), int(env["SLURM_STEP_ID"])
    visible = [d for d in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    local = int(env.get("SLURM_LOCALID", "0"))
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": size,
        "LOCAL_RANK": str(local % len(visible) if visible else local),  # Slurm may show each task its own GPU alone
        "MASTER_ADDR": env.get("MASTER_ADDR") or address(env),
        "MASTER_PORT": env.get("MASTER_PORT") or str(20_000 + (job * 31 + step) % 20_000),
    }


def address(env: MutableMapping[str, str]) -> str:
    """Return the first node of the step, or the node that called srun where the first one's name does not resolve."""
    host = expand(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or socket.gethostname())[0]
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror:
        return env.get("SLURM_LAUNCH_NODE_IPADDR", host)
    return host


def adopt(processes: int | None = None, env: MutableMapping[str, str] = os.environ) -> None:
    """Put `describe` into the environment, and check the size of the world against EXPECT and `--processes`.

    Args:
        processes: the expected size, as typed; None if nothing was.
        env: the environment.

    Raises:
        ConfigError: srun started another number of tasks, or the variables of a launcher that has ended are left in
            the shell.
    """
    found = describe(env)
    size = found.get("WORLD_SIZE") or env.get("WORLD_SIZE")
    _refuse_leftovers(env)
    typed = str(processes) if processes and (found or "RANK" in env) else None
    for name, expected in ((EXPECT, env.get(EXPECT)), ("--processes", typed)):
        if expected is not None and size is not None and size != expected:
            raise ConfigError(
                f"{size} processes were started",
                expected=f"{expected} ({name})",
                fix="`vlm launch`, or srun --nodes=N --ntasks-per-node=G: a bare srun starts one on each node",
            )
    env.update(found)


def _refuse_leftovers(env: MutableMapping[str, str]) -> None:
    """Check that RANK came with the rest of what a launcher sets: alone it would make a rank that writes nothing."""
    if "RANK" not in env:
        return
    rank, size = env["RANK"], env.get("WORLD_SIZE", "")
    whole = rank.isdecimal() and size.isdecimal() and int(rank) < int(size)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if whole and int(size) > 1 and not env.get(name)]
    if not whole or missing:
        raise ConfigError(
            f"RANK={rank} with WORLD_SIZE={size or '(not set)'}" + "".join(f" without {name}" for name in missing),
            expected="all that a launcher sets (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), or none of it",
            fix="unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT, then rerun the same command",
        )


@contextmanager
def one_voice(folder: Path) -> Iterator[None]:
    """Let only the first rank of an srun step that fails say why; the others end with one line.

    The first is the one that creates a file in `folder`, which all ranks share.
    """
    env = os.environ
    if "SLURM_STEP_ID" not in env or env.get("WORLD_SIZE", "1") == "1":
        yield
        return
    mark = folder / f".failed-{env.get('SLURM_JOB_ID', '0')}-{env['SLURM_STEP_ID']}"
    try:
        yield
    except Preempted:
        raise
    except Exception:  # any kind: it is raised again, or another rank has printed it
        rank = env["RANK"]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with mark.open("x") as f:
                f.write(rank)
        except FileExistsError:
            sys.stderr.write(f"rank {rank} ends: rank {mark.read_text() or '?'} failed first\n")
            sys.stderr.flush()
            os._exit(1)  # no cleaning up with peers that are gone
        sys.stderr.write(f"rank {rank} on {socket.gethostname()} failed first:\n")
        raise
