"""The debug DAG through `--profile slurm` on a real Slurm, to a finished report."""

import json
import shutil
from pathlib import Path

import pytest

from support.slurm_cluster import Cluster
from support.workflow_dag import ROOT, Dag, answers_of, copy_workflow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

JOBS = {
    "miniature": 3,
    "tokenizer": 1,
    "start_checkpoint": 2,
    "train_stage": 3,
    "evaluate_shard": 2,
    "evaluate_model": 3,
    "report": 1,
}
"""Jobs of the debug DAG that compute something."""


@pytest.fixture(scope="module")
def dag(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Dag:
    folder = copy_workflow(tmp_path_factory.mktemp("slurm-dag") / "checkout")
    dag = Dag(folder, cluster)
    assert dag.run() == {**JOBS, "all": 1}
    return dag


def test_each_job_is_one_slurm_job_and_the_stage_of_two_processes_has_two_tasks(dag: Dag, cluster: Cluster) -> None:
    assert dag.submitted() == JOBS
    said = cluster.ask("squeue", "-h", "-t", "all", "-o", "%k|%C|%T")
    assert "rule_train_stage_wildcards_debug-v2pe-long|2|COMPLETED" in said
    folder = dag.folder / "runs/debug/train/debug-v2pe-long/checkpoints"
    last = folder / (folder / "latest").read_text()
    assert json.loads((last / "manifest.json").read_text())["state"]["processes"] == 2


def test_a_second_run_executes_nothing(dag: Dag) -> None:
    before = dag.submitted()
    assert not dag.run()
    assert dag.submitted() == before


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Dag:
    """The same DAG by the local profile, with a separate benchmark table."""
    folder = copy_workflow(tmp_path_factory.mktemp("local-dag") / "checkout")
    (folder / "benchmarks").mkdir()
    shutil.copy(ROOT / "packages/eval/src/vlm/eval/benchmarks/mm-niah.yaml", folder / "benchmarks")
    dag = Dag(folder)
    assert dag.run() == {**JOBS, "all": 1}
    return dag


def test_the_tables_equal_those_of_the_local_profile(dag: Dag, local: Dag) -> None:
    assert local.tables() == dag.tables()


def test_beside_our_report_lies_that_of_snakemake(dag: Dag) -> None:
    page = (dag.folder / "runs/debug/report/snakemake.html").read_text()
    assert "debug-v2pe-long" in page
    assert "train_stage -> evaluate_shard" in (dag.folder / "runs/debug/rulegraph.dot").read_text()


def test_a_changed_benchmark_table_runs_that_benchmark_and_the_report_and_asks_nothing_again(local: Dag) -> None:
    before, answers = local.tables(), answers_of(local)
    table = local.folder / "benchmarks/mm-niah.yaml"
    table.write_text(table.read_text() + "# one word more\n")
    assert local.run() == {"evaluate_shard": 2, "evaluate_model": 1, "report": 1, "all": 1}
    assert local.tables() == before
    assert answers_of(local) == answers


def test_a_shape_that_no_partition_has_is_refused_before_anything_is_submitted(dag: Dag, tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    shutil.copytree(dag.folder, folder, symlinks=True)
    (folder / "runs/debug/report/index.html").unlink()
    profile = folder / "profiles/slurm/config.yaml"
    profile.write_text(profile.read_text().replace("mem_mb: 4000, disk_mb", "mem_mb: 4000000, disk_mb"))
    refused = Dag(folder, dag.cluster)
    refused.run(code=7)
    assert "this cluster cannot run" in refused.said and "--mem=4000000" in refused.said
    assert not refused.submitted()
