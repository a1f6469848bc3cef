"""Ranks read Slurm's environment, a wrong number of tasks is an error, and only one rank prints an error."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from vlm.cli.commands import launch as launch_command
from vlm.core.errors import ConfigError, UnknownName
from vlm.train.launch.launch import as_typed, launch_line
from vlm.train.launch.slurm import EXPECT, adopt, describe, expand

TASK = {
    "SLURM_JOB_ID": "71",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NODELIST": "localhost,n[2-3]",
}


@pytest.mark.parametrize(
    "nodes, hosts",
    [
        ("n1", ["n1"]),
        ("n[1-3,5]", ["n1", "n2", "n3", "n5"]),
        ("gpu[08-11],login", ["gpu08", "gpu09", "gpu10", "gpu11", "login"]),
        ("r[1-2]n[01,3]-ib,x", ["r1n01-ib", "r1n3-ib", "r2n01-ib", "r2n3-ib", "x"]),
    ],
)
def test_node_lists(nodes, hosts):
    assert expand(nodes) == hosts


@pytest.mark.parametrize("nodes", ["", "n[1-3", "n[a-b]"])
def test_what_is_no_node_list_is_refused(nodes):
    with pytest.raises(ConfigError, match="node"):
        expand(nodes)


def test_a_task_of_srun_knows_its_rank():
    found = describe(TASK)
    assert {k: found[k] for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")} == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "localhost",
    }
    others = describe({**TASK, "SLURM_PROCID": "0"}), describe({**TASK, "SLURM_STEP_ID": "3"})
    assert others[0]["MASTER_PORT"] == found["MASTER_PORT"] != others[1]["MASTER_PORT"]
    assert describe({**TASK, "CUDA_VISIBLE_DEVICES": "3"})["LOCAL_RANK"] == "0", "Slurm shows each task its own GPU"
    nameless = {**TASK, "SLURM_STEP_NODELIST": "no-such-host.invalid", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"}
    assert describe(nameless)["MASTER_ADDR"] == "10.0.0.7"


@pytest.mark.parametrize("without", ["SLURM_STEP_ID", "SLURM_PROCID"])
def test_the_shell_of_a_batch_job_and_ranks_of_a_launcher_are_no_tasks(without):
    assert describe({k: v for k, v in TASK.items() if k != without}) == {}
    assert describe({**TASK, "RANK": "0"}) == {}


def test_one_task_a_node_is_an_error_and_not_a_world_of_two():
    bare = {**TASK, "SLURM_STEP_NUM_TASKS": "2", EXPECT: "8"}
    with pytest.raises(ConfigError, match="2 processes were started") as error:
        adopt(env=bare)
    assert "--ntasks-per-node" in str(error.value) and "RANK" not in bare
    with pytest.raises(ConfigError, match=r"8 \(--processes\)"):
        adopt(8, env={**TASK, "SLURM_STEP_NUM_TASKS": "2"})
    with pytest.raises(ConfigError, match="1 processes"):
        adopt(env={**TASK, "SLURM_STEP_NUM_TASKS": "1", EXPECT: "8"})
    right = {**TASK, EXPECT: "8"}
    adopt(8, env=right)
    assert right["RANK"] == "5" and right["WORLD_SIZE"] == "8"


@pytest.mark.parametrize(
    "left",
    [
        {"RANK": "3"},
        {"RANK": "0"},
        {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"},
        {"RANK": "x", "WORLD_SIZE": "2"},
        {"RANK": "", "WORLD_SIZE": ""},
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h"},
    ],
)
def test_a_rank_that_is_left_in_the_shell_is_refused_with_what_to_unset(left):
    with pytest.raises(ConfigError, match="RANK=") as error:
        adopt(env=dict(left))
    assert "unset RANK" in error.value.fix
    with pytest.raises(ConfigError, match="1 processes were started"):
        adopt(2, env={"RANK": "0", "WORLD_SIZE": "1"})
    adopt(env={"RANK": "0", "WORLD_SIZE": "1"})
    adopt(2, env={"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"})


def test_outside_of_slurm_nothing_changes():
    env = {"HOME": "/"}
    adopt(4, env=env)
    assert env == {"HOME": "/"}


def test_launch_lines_name_the_shape(monkeypatch):
    shape = {"nodes": 2, "gpus_per_node": 4}
    line = as_typed(*launch_line(["--recipe", "x"], **shape, launcher="srun"))
    assert line == (
        "VLM_EXPECT_WORLD=8 srun --nodes=2 --ntasks-per-node=4 --kill-on-bad-exit=1 --gpus-per-node=4 "
        "vlm train --recipe x"
    )
    assert "--gpus-per-node" not in as_typed(*launch_line([], **shape, launcher="srun", inside=True))
    line = as_typed(*launch_line(["--run", "a b"], **shape, launcher="torchrun"))
    assert (
        "--nnodes=2" in line and "--node-rank=$NODE_RANK" in line and line.endswith("-- vlm.cli.main train --run 'a b'")
    )
    assert launch_line(["-r", "x"], nodes=1, gpus_per_node=4, launcher="vlm")[0][-2:] == ["--processes", "4"]
    with pytest.raises(ConfigError, match="2 nodes without srun"):
        launch_line([], nodes=2, gpus_per_node=1, launcher="vlm")


def test_vlm_launch_prints_the_line_of_this_place(monkeypatch):
    options = ["--recipe", "v2pe-32k", "--nodes", "4", "--gpus-per-node", "8", "--print", "--set", "seed=1"]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    result = CliRunner().invoke(launch_command.app, options)
    assert result.exit_code == 0 and result.stdout.strip() == (
        "VLM_EXPECT_WORLD=32 srun --nodes=4 --ntasks-per-node=8 --kill-on-bad-exit=1 "
        "vlm train --recipe v2pe-32k --set seed=1"
    )
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert CliRunner().invoke(launch_command.app, options).stdout.startswith("VLM_EXPECT_WORLD=32 torchrun")
    wrong = CliRunner().invoke(launch_command.app, ["--recipe", "v2pe-32", "--print"])
    assert isinstance(wrong.exception, UnknownName)


def test_only_the_first_rank_that_fails_says_why(tmp_path):
    code = f"""
import os
from pathlib import Path
from vlm.train.launch.slurm import one_voice
with one_voice(Path({str(tmp_path)!r}) / "run"):
    raise ValueError("the cause on rank " + os.environ["RANK"])
"""
    said = []
    for rank in (3, 0, 1):
        env = {**os.environ, "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "9", "WORLD_SIZE": "4", "RANK": str(rank)}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.returncode == 1
        said.append(done.stderr)
    assert said[0].startswith("rank 3 on") and "ValueError: the cause on rank 3" in said[0]
    assert said[1:] == ["rank 0 ends: rank 3 failed first\n", "rank 1 ends: rank 3 failed first\n"]
