"""The terminal of the workflow: stages instead of Snakemake's lines, errors with their logs, the page to open."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlm.cli.workflow import guards

SNAKEFILE = """
rule all:
    default_target: True
    input: "report.txt"
    localrule: True

rule miniature:
    output: "mini-{n}.txt"
    log: "logs/mini-{n}.log"
    shell: "echo {wildcards.n} > {output} 2> {log}"

rule train_stage:
    input: "mini-1.txt", "mini-2.txt"
    output: "model-{recipe}.txt"
    log: "logs/{recipe}.log"
    shell: "echo step 3 of 3 > {log}; FAIL; cat {input} > {output}"

rule report:
    input: "model-a[red]b.txt"
    output: "report.txt"
    shell: "cp '{input}' {output}"
"""


def snakemake(folder: Path, fail: str, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "Snakefile").write_text(SNAKEFILE.replace("FAIL", fail).replace("a[red]b", "ab"))
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--logger", "vlm", "--show-failed-logs", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_the_terminal_shows_stages_and_names_the_whole_log(tmp_path: Path) -> None:
    done = snakemake(tmp_path, "true")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "host" not in line.lower()]
    assert lines[0] == "4 jobs: draw miniature benchmarks 2, write the report 1, train 1" or lines[0].startswith(
        "4 jobs: "
    )
    assert "[0/4] draw miniature benchmarks ..." in lines
    assert sum("draw miniature benchmarks" in line for line in lines) == 3, "with the first line: one for each end"
    assert "[2/4] train ab ... (log: logs/ab.log)" in lines
    assert any(line.startswith("[3/4] train ab: done in ") for line in lines)
    assert any(line.startswith("[4/4] write the report: done in ") for line in lines)
    assert len(lines) < 12
    named = next(line for line in lines if line.startswith("Complete log")).split(": ")[1]
    assert "rule train_stage:" in Path(named).read_text()
    again = snakemake(tmp_path, "true")
    assert "Nothing to be done" in again.stderr and len(again.stderr.splitlines()) < 5


def test_a_job_that_fails_is_shown_with_its_log(tmp_path: Path) -> None:
    done = snakemake(tmp_path, "echo out of memory >> {log}; exit 3")
    assert done.returncode == 1
    assert "Error in rule train_stage:" in done.stderr and "out of memory" in done.stderr
    assert "train ab: done" not in done.stderr


def test_a_dry_run_shows_all_jobs(tmp_path: Path) -> None:
    done = snakemake(tmp_path, "true", "--dry-run")
    said = done.stdout + done.stderr
    assert done.returncode == 0 and said.count("rule miniature:") == 2 and "rule report:" in said


def test_where_no_slurm_answers_reproduce_says_so_in_one_line_and_starts_nothing(
    checkout: Path, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    env = {**os.environ, "PATH": str(tmp_path / "bin"), "VLM_HOME": str(checkout)}
    command = [sys.executable, "-m", "vlm.cli.main", "reproduce", "v2pe"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, env=env, timeout=120)
    first, fix = done.stderr.splitlines()
    assert done.returncode == 7 and not done.stdout
    assert first == "error: no Slurm answers on this machine, and the profile slurm submits to it"
    assert "--profile local" in fix and not (checkout / ".snakemake").exists()


def test_the_last_line_names_the_page_to_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guards.subprocess, "run", lambda *_: subprocess.CompletedProcess([], 0))
    guards.write_snakemake_report(str(tmp_path / "run"), [])
    assert capsys.readouterr().err == "", "no page, no line"
    (tmp_path / "run/report").mkdir(parents=True)
    (tmp_path / "run/report/index.html").write_text("")
    guards.write_snakemake_report(str(tmp_path / "run"), [])
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"open {tmp_path}/run/report/index.html")


def test_the_rules_of_long_work_do_not_silence_their_logs() -> None:
    rules = (Path(__file__).parents[2] / "workflows/rules").glob("*.smk")
    assert not [path.name for path in rules if "--quiet" in path.read_text()]
