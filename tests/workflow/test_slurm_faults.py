"""What clusters do to a run. After each fault the same command finishes, redoes only what was lost, and the report is
the one of an undisturbed run."""

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.slurm_cluster import Cluster, alive
from support.workflow_dag import ONCE, Dag, answers_of, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def training(dag: Dag, *, steps: int = 12) -> subprocess.Popen[bytes]:
    """Start the DAG and wait until the stage has done some steps, and has saved checkpoints."""
    process = dag.start()
    dag.until(process, lambda: dag.steps() >= steps)
    return process


def same(dag: Dag, undisturbed: Dag) -> None:
    """The same losses step for step, and the same report."""
    assert dag.losses() == undisturbed.losses()
    assert dag.tables() == undisturbed.tables()


def repeated(dag: Dag) -> Counter[str]:
    """Slurm jobs beyond those of a run without faults."""
    return dag.submitted() - ONCE


def test_a_job_canceled_from_outside_is_submitted_again_and_resumes(faulty: Dag, undisturbed: Dag) -> None:
    process = training(faulty)
    faulty.cluster.ask("scancel", faulty.running("train_stage"))
    faulty.wait(process)
    assert repeated(faulty) == {"train_stage": 1}
    same(faulty, undisturbed)


def test_a_node_daemon_that_dies_and_returns_costs_nothing(faulty: Dag, undisturbed: Dag, cluster: Cluster) -> None:
    process = training(faulty)
    node = cluster.ask("squeue", "-h", "-j", faulty.running("train_stage"), "-o", "%N").strip()
    cluster.kill_node(node, jobs=False)
    time.sleep(5)
    cluster.start_node(node)
    faulty.wait(process)
    assert not repeated(faulty)
    same(faulty, undisturbed)


def test_a_restarted_controller_costs_nothing(faulty: Dag, undisturbed: Dag, cluster: Cluster) -> None:
    process = training(faulty)
    cluster.stop_controller()
    time.sleep(5)
    cluster.start_controller()
    faulty.wait(process)
    assert not repeated(faulty)
    same(faulty, undisturbed)


def test_at_the_time_limit_the_stage_saves_and_a_new_job_continues(faulty: Dag) -> None:
    steps = 2200  # some minutes; no checkpoint but those that the warning before the limit causes
    write_recipe(faulty.folder, steps=steps, save_every=10 * steps)
    profile = faulty.folder / "profiles/slurm/config.yaml"
    text = profile.read_text().replace("warn_seconds: 600", "warn_seconds: 60")
    profile.write_text(text.replace("train_stage: {runtime: 1440}", "train_stage: {runtime: 3}"))
    faulty.more = ("--retries", "9", "--latency-wait", "5")
    faulty.run(seconds=850)
    again = repeated(faulty)
    assert set(again) == {"train_stage"}
    assert [step for step, _ in faulty.losses()] == list(range(steps))  # each attempt went on where the last one saved


def test_a_failed_node_gives_its_job_to_another(faulty: Dag, undisturbed: Dag, cluster: Cluster) -> None:
    process = training(faulty)
    job = faulty.running("train_stage")
    node = cluster.ask("squeue", "-h", "-j", job, "-o", "%N").strip()
    cluster.kill_node(node)
    try:
        faulty.wait(process, 600)
        assert not repeated(faulty)  # requeued under its old number
        elsewhere = cluster.ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%N").strip()
        assert elsewhere != node
    finally:
        cluster.start_node(node)
    same(faulty, undisturbed)


def test_after_kill_9_of_snakemake_its_stray_job_is_ended_first(faulty: Dag, undisturbed: Dag) -> None:
    process = training(faulty)
    stray = faulty.running("train_stage")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert faulty.running("train_stage") == stray
    faulty.run()
    assert f"canceled the jobs that an earlier run left: {stray}" in faulty.said
    assert repeated(faulty) == {"train_stage": 1}
    same(faulty, undisturbed)


def test_a_second_snakemake_in_the_same_run_is_refused(faulty: Dag, undisturbed: Dag) -> None:
    process = training(faulty, steps=1)
    second = Dag(faulty.folder, faulty.cluster, faulty.config)
    first_log = faulty.log.rename(faulty.log.with_suffix(".first"))
    second.run(code=6)
    assert "is in use by" in second.said
    first_log.rename(faulty.log)
    faulty.wait(process)
    assert not repeated(faulty)
    same(faulty, undisturbed)


def test_a_deleted_file_between_is_made_again_with_what_depends_on_it(faulty: Dag, undisturbed: Dag) -> None:
    faulty.run()
    before, answers = faulty.submitted(), answers_of(faulty)
    (faulty.folder / "runs/fault/eval/v2pe/POPE/default/summary.json").unlink()
    faulty.run()
    assert faulty.submitted() - before == {"evaluate_model": 1, "report": 1}
    assert answers_of(faulty) == answers  # no question was asked again
    same(faulty, undisturbed)


@pytest.fixture
def small_disk(faulty: Dag) -> Iterator[Path]:
    """`runs/` on a separate disk that holds the data of an evaluation, and no checkpoint of the stage."""
    folder = faulty.folder / "runs"
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"cannot mount a small disk: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_fails_the_stage_and_free_space_lets_it_continue(
    faulty: Dag, undisturbed: Dag, small_disk: Path
) -> None:
    (small_disk / "fault").mkdir()
    faulty.more = ("--retries", "1")
    faulty.run(code=1)
    assert "cannot write below" in (faulty.folder / "runs/fault/logs/train/long.log").read_text()
    assert faulty.submitted() == {"train_stage": 2}
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    faulty.run()
    assert faulty.submitted() - Counter(train_stage=2) == ONCE
    same(faulty, undisturbed)


def test_the_cluster_leaves_no_process_behind(tmp_path: Path, cluster: Cluster) -> None:
    other = Cluster(tmp_path / "other", nodes=1)
    try:
        other.start()
        pids = [int(path.read_text()) for path in other.root.glob("*.pid")]
    finally:
        other.stop()
    assert len(pids) == 3
    assert not [pid for pid in pids if alive(pid)]
    assert cluster.ask("sinfo", "-h")
