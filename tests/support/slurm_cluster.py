"""A real Slurm on one machine, for tests: one controller and several node daemons on loopback ports, all in one folder.

    python tests/support/slurm_cluster.py start DIR      prints the line that puts its commands on PATH
    python tests/support/slurm_cluster.py stop DIR

Debian builds Slurm with several `slurmd` per host, so each virtual node is one process with its own name and port. No
systemd and no cgroups are needed. The client commands are wrapped (DIR/bin): inside a job the Snakemake plugin drops
SLURM_CONF from the environment, and without it `srun` would look for a system-wide cluster.
"""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo", "sacct")
CONF = """\
ClusterName=loop
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,sched_min_interval=0,batch_sched_delay=0,bf_interval=2
ReturnToService=1
JobRequeue=1
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=10
KillWait=5
MinJobAge=3600
FirstJobId={ctld}
GresTypes=gpu
DefMemPerCPU=500
PropagateResourceLimits=NONE
MailProg=/bin/true
"""
"""MinJobAge: `squeue` remembers finished jobs, which is all Snakemake can ask where there is no accounting. FirstJobId:
jobs of two clusters on one host get other numbers, from which `vlm train` takes the port of its ranks."""


def lacking() -> str:
    """Why a cluster cannot be started here, or nothing."""
    missing = [name for name in DAEMONS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
    if missing:
        return f"needs {', '.join(missing)} (Debian: slurmctld, slurmd, slurm-client, munge): make slurm"
    return "" if os.geteuid() == 0 else "needs root"


def free_ports(count: int) -> list[int]:
    """TCP ports on loopback that were free a moment ago."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def wait_until(done: Callable[[], object], seconds: float, what: str) -> None:
    """Poll; a RuntimeError names what never came."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} not within {seconds:g} s")
        time.sleep(0.1)


def children(pid: int) -> Iterator[int]:
    """A process and all below it, deepest last."""
    yield pid
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    for child in listed.stdout.split():
        yield from children(int(child))


@dataclass(frozen=True)
class Cluster:
    """`nodes` virtual nodes of 8 cores, 16 GB and 8 pretended H100 each, in the partitions `gpu` and `cpu`."""

    root: Path
    nodes: int = 3

    @property
    def env(self) -> dict[str, str]:
        """The environment in which Slurm's commands mean this cluster."""
        return {**os.environ, "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}", "SLURM_CONF": str(self.conf)}

    @property
    def conf(self) -> Path:
        return self.root / "slurm.conf"

    @property
    def names(self) -> list[str]:
        """Names of the nodes."""
        return [f"n{i}" for i in range(1, self.nodes + 1)]

    def ask(self, *command: str) -> str:
        """Output of a client command; RuntimeError when it fails."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)}: {done.stderr}")
        return done.stdout

    def jobs(self, states: str = "all") -> list[tuple[str, str, str, str]]:
        """(number, state, comment, nodes) of the jobs in some states."""
        lines = self.ask("squeue", "-h", "-t", states, "-o", "%i|%T|%k|%N").splitlines()
        return [tuple(line.split("|", 3)) for line in lines]  # type: ignore[misc]

    def start(self) -> "Cluster":
        """Bring everything up and wait until all nodes are idle."""
        self._write()
        munged = [f"--{key}={self.root / name}" for key, name in MUNGE.items()]
        subprocess.run(["munged", *munged, "--force"], env=self._path(), check=True, capture_output=True)
        self.start_controller()
        for name in self.names:
            self.start_node(name)
        idle = ("sinfo", "-h", "-N", "-p", "cpu", "-t", "idle", "-o", "%N")
        wait_until(lambda: len(self.ask(*idle).split()) == self.nodes, 30, "idle nodes")
        return self

    def start_controller(self) -> None:
        """Start (or restart) slurmctld from its saved state."""
        subprocess.run(["slurmctld", "-f", str(self.conf)], env=self._path(), check=True, capture_output=True)
        wait_until(lambda: "UP" in self._quiet("scontrol", "ping"), 20, "a controller that answers")

    def start_node(self, name: str) -> None:
        """Start the daemon of one node."""
        (self.root / "spool" / name).mkdir(parents=True, exist_ok=True)
        subprocess.run(["slurmd", "-f", str(self.conf), "-N", name], env=self._path(), check=True, capture_output=True)

    def stop_controller(self) -> None:
        """End slurmctld as an administrator would; it saves its state."""
        self._end("slurmctld")

    def kill_node(self, name: str, *, jobs: bool = True) -> None:
        """SIGKILL a node's daemon; with `jobs` everything that ran there dies too, as in a crash of the machine."""
        steps = self._steps(name) if jobs else []
        self._end(f"slurmd-{name}", signal.SIGKILL)
        for step in steps:
            for pid in reversed(list(children(step))):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Cancel what runs and end every process of this cluster, and no other."""
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            self.ask("scancel", "--user", str(os.geteuid()))
            wait_until(lambda: not self.jobs("R,CG"), 15, "an empty queue")
        for name in self.names:
            self.kill_node(name)
        self._end("slurmctld")
        self._end("munged")

    def _end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Signal the daemon of a pid file and wait for its end; SIGKILL after ten seconds."""
        file = self.root / f"{name}.pid"
        pid = int(file.read_text()) if file.exists() and file.read_text().strip() else 0
        for attempt in (number, signal.SIGKILL):
            if not pid or not alive(pid):
                break
            os.kill(pid, attempt)
            with contextlib.suppress(RuntimeError):
                wait_until(lambda: not alive(pid), 10, f"the end of {name}")
        file.unlink(missing_ok=True)

    def _steps(self, name: str) -> list[int]:
        """The step daemons of a node: each keeps the node's log file open."""
        found = subprocess.run(["pgrep", "-x", "slurmstepd"], capture_output=True, text=True).stdout.split()
        log = str(self.root / f"slurmd-{name}.log")
        return [int(pid) for pid in found if log in opened(int(pid))]

    def _quiet(self, *command: str) -> str:
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60).stdout

    def _path(self) -> dict[str, str]:
        return {**self.env, "PATH": f"{self.env['PATH']}:/usr/sbin:/sbin"}

    def _write(self) -> None:
        """Configuration, keys, pretended GPUs and wrapped commands."""
        for folder in ("state", "spool", "dev", "bin"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o755)
        key = self.root / "munge.key"
        key.touch(0o400)
        key.write_bytes(os.urandom(256))
        host, ports = socket.gethostname().split(".")[0], free_ports(self.nodes + 1)
        text = CONF.format(host=host, ctld=ports[0], user="root", root=self.root)
        size = "CPUs=8 Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=16000 Gres=gpu:h100:8"
        for name, port in zip(self.names, ports[1:], strict=True):
            text += f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} {size} State=UNKNOWN\n"
        for partition in ("cpu", "gpu"):
            text += f"PartitionName={partition} Nodes=ALL MaxTime=1-00:00:00 DefaultTime=10 State=UP\n"
        self.conf.write_text(text)
        for i in range(8):  # a device that exists is enough for Slurm to hand it out
            (self.root / f"dev/gpu{i}").unlink(missing_ok=True)
            (self.root / f"dev/gpu{i}").symlink_to("/dev/null")
        nodes = f"NodeName=n[1-{self.nodes}]"
        (self.root / "gres.conf").write_text(f"{nodes} Name=gpu Type=h100 File={self.root}/dev/gpu[0-7]\n")
        (self.root / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        for name in CLIENTS:
            wrapper = self.root / "bin" / name
            # not from PATH: another cluster's wrapper there would answer for that cluster
            real = shutil.which(name, path="/usr/local/bin:/usr/bin:/bin")
            wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={self.conf} exec {real} "$@"\n')
            wrapper.chmod(0o755)


MUNGE = {
    "key-file": "munge.key",
    "socket": "munge.socket",
    "pid-file": "munged.pid",
    "log-file": "munged.log",
    "seed-file": "munged.seed",
}
"""Option of munged -> its file."""


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def opened(pid: int) -> list[str]:
    """Files that a process keeps open."""
    try:
        return [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return []


if __name__ == "__main__":
    verb, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    if verb == "start" and (why := lacking()):
        sys.exit(why)
    cluster = Cluster(folder)
    if verb == "start":
        cluster.start()
        print(f"export SLURM_CONF={cluster.conf} PATH={folder / 'bin'}:$PATH")
    else:
        cluster.stop()
