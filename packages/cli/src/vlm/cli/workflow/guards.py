"""Guards of the DAG on a cluster, and the shape of a job; for the Snakefile's rules and its `onstart`.

A killed Snakemake leaves its jobs running, and the next run would submit a second copy that writes the same files:
`exclusive` keeps a second Snakemake out, `cancel_strays` ends the jobs of a dead one, `preflight` refuses shapes that
no partition has (Slurm would keep them pending forever, without a message).
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from vlm.core.errors import HardwareError, VlmError, of_system
from vlm.core.home import locked, split_lines, write_atomic
from vlm.core.text import printable_lines

PATIENCE = 120.0
"""Seconds that canceled jobs have to end (Slurm's KillWait is 30 by default)."""


def exclusive(run: str) -> AbstractContextManager[None]:
    """Lock a run's DAG; the kernel releases it when Snakemake dies, however it dies. Raises LockedError."""
    return locked(Path(run) / ".dag", "snakemake")


@contextmanager
def plain_errors() -> Iterator[None]:
    """End Snakemake with the message of an error that a user can fix, and without a traceback."""
    try:
        yield
    except (VlmError, OSError) as error:
        known = of_system(error) if isinstance(error, OSError) else error
        if known is None:
            raise
        print(f"error: {printable_lines(str(known))}", file=sys.stderr, flush=True)
        raise SystemExit(known.exit_code) from None


def slurm(*command: str) -> str:
    """Return the output of a Slurm command. Raises VlmError when the command is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VlmError(f"{command[0]} did not run: {error}", fix="start on a machine where Slurm answers") from error
    if done.returncode:
        raise VlmError(
            f"{' '.join(command)}: {done.stderr.strip()}", fix="check Slurm with `sinfo`, then rerun the same command"
        )
    return done.stdout


def strays(folder: Path) -> list[str]:
    """Return the numbers of this user's jobs that Snakemake submitted from `folder` (their comment is `rule_…`)."""
    lines = (line.split("|", 2) for line in split_lines(slurm("squeue", "--me", "--noheader", "--format=%i|%k|%Z")))
    here = str(folder.resolve())
    return [number for number, comment, where in lines if where == here and comment.startswith("rule_")]


def cancel_strays(folder: Path = Path()) -> list[str]:
    """Cancel the jobs that an earlier Snakemake left in `folder` and wait for their end; return their numbers."""
    found = strays(folder)
    if found:
        slurm("scancel", *found)
        end = time.monotonic() + PATIENCE
        while left := set(found) & set(strays(folder)):
            if time.monotonic() > end:
                raise VlmError(f"jobs {', '.join(sorted(left))} do not end", fix="ask the cluster's administrators")
            time.sleep(1)
        print(f"canceled the jobs that an earlier run left: {', '.join(found)}", flush=True)
    return found


def nodes_of(ranks: int, gpus_per_node: int) -> int:
    """Return the fewest nodes that hold `ranks` in equal parts.

    >>> nodes_of(32, 8), nodes_of(12, 8), nodes_of(2, 8)
    (4, 2, 1)
    """
    return next(n for n in range(1, ranks + 1) if ranks % n == 0 and ranks // n <= gpus_per_node)


Resources = dict[str, Any]
"""Name -> value or function of the wildcards, for the `resources:` of a rule."""


def one_process(site: dict[str, Any], gpus: Callable[[Any], int]) -> Resources:
    """Return the resources of a job of one process, with `gpus(wildcards)` GPUs on one node; {} without a site."""
    if not site:
        return {}
    kind = f"gpu:{site['gpu']}" if site.get("gpu") else "gpu"  # many clusters name no types
    return {
        "gres": lambda w: f"{kind}:{gpus(w)}" if gpus(w) else None,
        "mem_mb": lambda w: int(site["mem_mb_per_gpu"]) * gpus(w) or int(site["mem_mb"]),
        "cpus_per_task": lambda w: int(site["cpus_per_gpu"]) * gpus(w) or 1,
        "slurm_partition": lambda w: site["gpu_partition"] if gpus(w) else site["cpu_partition"],
    }


def several_tasks(site: dict[str, Any], count: Callable[[Any], int], on_gpus: Callable[[Any], bool]) -> Resources:
    """Return the resources of a job of `count(wildcards)` tasks, in equal parts on the fewest nodes; {} without a site.

    Tasks have a GPU each where `on_gpus(wildcards)`.
    """
    if not site:
        return {}

    def nodes(wildcards: Any) -> int:
        return nodes_of(count(wildcards), int(site["gpus_per_node"]))

    def tasks(wildcards: Any) -> int:
        return count(wildcards) // nodes(wildcards)

    alone = one_process(site, lambda w: tasks(w) if on_gpus(w) else 0)  # `gres` and `mem_mb` are per node
    return {
        **alone,
        "nodes": nodes,
        "tasks_per_node": lambda w: tasks(w) if count(w) > 1 else None,
        "mpi": lambda w: site["launcher"] if count(w) > 1 else None,
        "cpus_per_task": lambda w: int(site["cpus_per_gpu"]) if on_gpus(w) else 1,
    }


def many_processes(site: dict[str, Any], stage: Callable[[Any], dict[str, Any]]) -> Resources:
    """Return the resources of a training stage: a task for each GPU or process."""
    if not site:
        return {}
    return {
        **several_tasks(site, lambda w: ranks(stage(w)), lambda w: "gpus" in stage(w)),
        # without `B:` only the ranks get the signal of the time limit; a job of one rank has no step
        "slurm_extra": lambda w: (
            f"--signal=USR1@{site['warn_seconds']} --open-mode=append" if ranks(stage(w)) > 1 else None
        ),
    }


def evaluation(site: dict[str, Any], gpus: Callable[[Any], int], processes: Callable[[Any], int]) -> Resources:
    """Return the resources of an evaluation: a task for each process of a ring, else one process with all its GPUs."""
    if not site:
        return {}
    alone, ring = one_process(site, gpus), several_tasks(site, processes, lambda w: gpus(w) > 0)

    def chosen(key: str) -> Callable[[Any], Any]:
        return lambda w: (ring if processes(w) > 1 else alone).get(key, lambda _: None)(w)

    return {key: chosen(key) for key in ring}


def ranks(stage: dict[str, Any]) -> int:
    """Return the processes of a stage of the configuration."""
    return int(stage.get("gpus") or stage.get("processes", 1))


def launch(resources: Any) -> str:
    """Return what comes before `vlm train`: the job step of a multi-process job, nothing for one process.

    Nodes and tasks are repeated because a bare `srun` inside the job would start one task on each node. Without
    `--kill-on-bad-exit` the others would wait forever for a rank that failed.
    """
    if not resources.get("mpi"):
        return ""
    shape = f"--nodes={resources.nodes} --ntasks-per-node={resources.tasks_per_node}"
    return f"{resources.mpi} --kill-on-bad-exit=1 {shape} "


def train_options(stage: dict[str, Any], run: str) -> str:
    """Return the options of a stage for `vlm train`. Each rank compares the number of processes with its world."""
    count = ranks(stage)
    sets = [f"--set {key}={str(value).format(run=run)}" for key, value in stage.get("set", {}).items()]
    return "".join(f"{flag} " for flag in [*([f"--processes {count}"] if count > 1 else []), *sets])


def request(resources: Any, threads: int) -> tuple[str, ...]:
    """Return the options of `sbatch` that decide whether a job can ever start."""
    flags = {"--nodes": "nodes", "--ntasks-per-node": "tasks_per_node", "--gres": "gres", "--mem": "mem_mb"}
    flags |= {"--time": "runtime", "--partition": "slurm_partition", "--account": "slurm_account"}
    asked = [f"{flag}={resources[key]}" for flag, key in flags.items() if resources.get(key)]
    return (*asked, f"--cpus-per-task={resources.get('cpus_per_task') or threads}")


def preflight(jobs: Iterable[Any]) -> None:
    """Ask Slurm once for each shape of job whether it could run at all.

    Raises:
        HardwareError: every impossible shape, with Slurm's answer.
    """
    shapes = {request(job.resources, job.threads): job.rule.name for job in jobs if not job.is_local}
    refused = []
    for options, rule in shapes.items():
        command = ["sbatch", "--test-only", *options, "--output=/dev/null", "--wrap=true"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=without_defaults())
        if done.returncode:
            refused.append(f"  {rule}: {' '.join(options)}\n      {done.stderr.strip()}")
    if refused:
        raise HardwareError(
            "this cluster cannot run:\n" + "\n".join(refused),
            fix="correct `site`, set-resources or default-resources in profiles/slurm/config.yaml",
        )


def write_rule_graph(run: str, jobs: Iterable[Any]) -> None:
    """Write which rule needs which as `run`/rulegraph.dot (graphviz), where `vlm report` reads it."""
    jobs = list(jobs)
    maker = {str(path): job.rule.name for job in jobs for path in job.output}
    needed = {(maker[str(path)], job.rule.name) for job in jobs for path in job.input if str(path) in maker}
    lines = [f'  {name}[label = "{name}"];' for name in sorted({job.rule.name for job in jobs})]
    lines += [f"  {before} -> {after};" for before, after in sorted(needed)]
    write_atomic(Path(run) / "rulegraph.dot", "\n".join(["digraph rules {", *lines, "}", ""]))


def write_snakemake_report(run: str, configfiles: Iterable[Any]) -> None:
    """Write Snakemake's report beside ours, if that exists: each job with its command, times and provenance."""
    if not (Path(run) / "report/index.html").exists():
        return
    command = [sys.executable, "-m", "snakemake", "all", "--report", f"{run}/report/snakemake.html", "--quiet", "all"]
    files = [str(file) for file in configfiles]
    done = subprocess.run([*command, "--cores", "1", *(["--configfile", *files] if files else [])])
    if done.returncode:  # only a part of the DAG was asked for
        print(f"no {run}/report/snakemake.html: the outputs of `all` are not complete", flush=True)
    page = (Path(run) / "report/index.html").resolve()
    print(f"the report is there; to read it, open {page}", file=sys.stderr, flush=True)


def without_defaults() -> dict[str, str]:
    """Return the environment without the user's defaults for sbatch, which the plugin drops as well."""
    return {key: value for key, value in os.environ.items() if not key.startswith("SBATCH_")}
