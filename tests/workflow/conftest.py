"""A checkout of the workflow's files in a separate folder, a Slurm, and the DAG that faults are tried on."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from support.slurm_cluster import Cluster, lacking
from support.workflow_dag import FAULTY, ONCE, Dag, copy_workflow, write_recipe


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return copy_workflow(tmp_path / "checkout")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Slurm of three nodes, taken down at the end."""
    if why := lacking():
        pytest.skip(why)
    up = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        yield up.start()
    finally:
        up.stop()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout for faults, its data and start checkpoint made; tests copy it."""
    folder = copy_workflow(tmp_path_factory.mktemp("prepared") / "checkout")
    debug = yaml.safe_load((folder / "workflows/config/debug.yaml").read_text())
    config = {**FAULTY, "tokenizer": debug["tokenizer"], "start": {"debug-v2pe": debug["start"]["debug-v2pe"]}}
    (folder / "fault.yaml").write_text(yaml.safe_dump(config))
    dag = Dag(folder, config="fault.yaml")
    write_recipe(folder, steps=200)
    dag.run("pretrained/debug-v2pe/config.json", "data")
    return folder


@pytest.fixture
def faulty(prepared: Path, tmp_path: Path, cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Dag]:
    """A fresh copy of `prepared`, to run on the cluster; reports at the end which jobs were done more than once."""
    folder = tmp_path / "checkout"
    shutil.copytree(prepared, folder, symlinks=True)
    dag = Dag(folder, cluster, config="fault.yaml")
    yield dag
    dag.stop()
    jobs = dag.submitted()
    print(f"{request.node.name}: Slurm jobs {dict(jobs)}, beyond one run {dict(jobs - ONCE)}")


@pytest.fixture(scope="session")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Dag:
    """The fault DAG run here, without a fault: what every report must equal."""
    folder = tmp_path_factory.mktemp("undisturbed") / "checkout"
    shutil.copytree(prepared, folder, symlinks=True)
    dag = Dag(folder, config="fault.yaml")
    dag.run()
    return dag
