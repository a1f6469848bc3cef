"""The quickstart by the local profile and on a real Slurm: trained weights, answers and report are the same. Unlike the
other tests it fetches what the quickstart fetches: five packages of the index."""

from collections import Counter
from pathlib import Path

import pytest

from support.slurm_cluster import Cluster
from support.workflow_dag import Dag, copy_workflow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(8400)]

QUICKSTART = "workflows/config/quickstart.yaml"


def test_the_quickstart_gives_the_same_report_on_both_profiles(tmp_path: Path, cluster: Cluster) -> None:
    here = Dag(copy_workflow(tmp_path / "here"), config=QUICKSTART)
    # four at a time: enough for two cores while the others wait for Snakemake's next look at the queue
    there = Dag(copy_workflow(tmp_path / "there"), cluster, config=QUICKSTART, more=("--jobs", "4"))
    try:
        done = here.run(seconds=3600)
        assert there.run(seconds=4500) == done
    finally:
        here.stop()
        there.stop()
    local_rules = Counter({"all": 1, "download": done["download"]})
    assert there.submitted() + local_rules == done  # each job was one Slurm job, and none ran twice
    assert there.tables() == here.tables()  # with the digest of each model's weights, and every loss
    assert not there.run()
