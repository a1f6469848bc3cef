"""Snakemake in a separate checkout, locally or on a private Slurm; shared by the tests of the workflow."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.slurm_cluster import Cluster
from vlm.cli.workflow.jobs import DagJob, make_job

ROOT = Path(__file__).parent.parent.parent
FAULTY = {
    "run": "runs/fault",
    "tokenizer": None,
    "miniatures": {"Long-VQA-32k": 4, "POPE": 2},
    "start": None,
    "stages": {
        "long": {
            "system": "v2pe",
            "file": "workflows/recipes/long.yaml",
            "start": "pretrained/debug-v2pe",
            "data": ["dataset/mini/Long-VQA-32k/mini.json"],
            "processes": 2,
        }
    },
    "evaluate": {"v2pe": {"system": "v2pe", "recipe": "long", "shards": 2, "benchmarks": {"POPE": ["default"]}}},
}
"""The debug DAG cut down to one stage of two processes, two shards, their gathering and the report."""

ONCE = Counter(train_stage=1, evaluate_shard=2, evaluate_model=1, report=1)
"""Slurm jobs of the fault DAG when nothing has to be repeated."""


HEAD = re.compile(r"^(?:local)?(?:rule|checkpoint) (\w+):$", re.MULTILINE)
SHELL = re.compile(r"^ *Shell command: (.*)$", re.MULTILINE)


def printed_jobs(said: str) -> list[DagJob]:
    """The jobs that `snakemake -n --printshellcmds` printed."""
    heads = [*HEAD.finditer(said)]
    ends = [*(head.start() for head in heads[1:]), len(said)]
    shells = [SHELL.search(said, head.end(), end) for head, end in zip(heads, ends, strict=False)]
    return [make_job(head[1], shell and shell[1]) for head, shell in zip(heads, shells, strict=True)]


def copy_workflow(folder: Path) -> Path:
    """The workflow's files alone, with nothing made yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("Snakefile", "workflows", "profiles"):
        source, target = ROOT / name, folder / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    (folder / "slurm").symlink_to("profiles/slurm")
    return folder


@dataclass
class Dag:
    """Snakemake in a checkout: `Dag(folder).run("all")` here, `Dag(folder, cluster)` through the profile `slurm`."""

    folder: Path
    cluster: Cluster | None = None
    config: str = "workflows/config/debug.yaml"
    more: tuple[str, ...] = ()
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start it in a separate session; its output goes to `said`."""
        profile = "slurm" if self.cluster else "profiles/local"
        command = [sys.executable, "-m", "snakemake", *(words or ["all"]), "--profile", profile, "--nocolor"]
        command += ["--configfile", self.config, *self.more]
        env = {**(self.cluster.env if self.cluster else os.environ), "OMP_NUM_THREADS": "1"}
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, env=env, start_new_session=True
            )
        self.processes.append(process)
        return process

    def stop(self) -> None:
        """Kill what still runs; for the end of a test that failed."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def run(self, *words: str, seconds: float = 420, code: int = 0) -> Counter[str]:
        """Run to the end; return the number of finished jobs that it reports, by rule."""
        process = self.start(*words)
        return self.wait(process, seconds, code)

    def wait(self, process: subprocess.Popen[bytes], seconds: float = 420, code: int = 0) -> Counter[str]:
        """Wait for the end and check the exit code; the finished jobs by rule."""
        try:
            ended = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"no end after {seconds:g} s:\n{self.said[-3000:]}")
        assert ended == code, self.said[-6000:]
        return Counter(re.findall(r"Finished jobid: \d+ \(Rule: (\w+)\)", self.said))

    @property
    def log(self) -> Path:
        return self.folder / "snakemake.said"

    @property
    def said(self) -> str:
        """What the last Snakemake wrote."""
        return self.log.read_text(errors="replace")

    def submitted(self) -> Counter[str]:
        """Slurm jobs of this checkout since the cluster is up, by rule."""
        assert self.cluster
        lines = self.cluster.ask("squeue", "-h", "-t", "all", "-o", "%Z|%k").splitlines()
        mine = [comment for where, _, comment in (line.partition("|") for line in lines) if where == str(self.folder)]
        return Counter(re.match(r"rule_(.*?)(_wildcards_|$)", comment)[1] for comment in mine)  # type: ignore[index]

    def running(self, rule: str) -> str:
        """Number of the running job of a rule, or nothing."""
        assert self.cluster
        lines = self.cluster.ask("squeue", "-h", "-t", "R", "-o", "%i|%Z|%k").splitlines()
        found = [line.split("|")[0] for line in lines if f"|{self.folder}|rule_{rule}" in line]
        return found[0] if found else ""

    def steps(self) -> int:
        """Training steps on the disk."""
        found = list(self.folder.glob("runs/*/train/long/metrics.jsonl"))
        return len(found[0].read_text().splitlines()) if found else 0

    def until(self, process: subprocess.Popen[bytes], done: Callable[[], Any], seconds: float = 150) -> None:
        """Wait for a condition while Snakemake runs."""
        end = time.monotonic() + seconds
        while not done():
            assert process.poll() is None, f"ended with {process.returncode}:\n{self.said[-6000:]}"
            assert time.monotonic() < end, f"nothing happened:\n{self.said[-3000:]}"
            time.sleep(0.3)

    def tables(self) -> dict[str, Any]:
        """The report without what differs by nature: times, and the folder it lies in."""
        (path,) = self.folder.glob("runs/*/report/report.json")
        report = json.loads(path.read_text().replace(str(self.folder), "HERE"))
        return {key: value for key, value in report.items() if key not in TIMED}

    def losses(self) -> list[tuple[int, float]]:
        """Step and loss of the stage `long`."""
        (path,) = self.folder.glob("runs/*/train/long/metrics.jsonl")
        return [(line["step"], line["loss"]) for line in map(json.loads, path.read_text().splitlines())]


TIMED = {"timing", "workflow"}
"""Parts of report.json that hold times."""


def write_recipe(folder: Path, *, steps: int, save_every: int = 5) -> None:
    """The stage of the fault DAG, a tenth of a second a step."""
    recipe = {"base": "debug-v2pe-sft", "title": "faults", "strides": "random", "steps": steps}
    recipe["save_every"] = save_every
    (folder / "workflows/recipes/long.yaml").write_text(yaml.safe_dump(recipe))


def answers_of(dag: Dag) -> dict[str, bytes]:
    """The logs of what the models answered, by file."""
    folder = dag.folder / "runs"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("outcomes.jsonl")}
