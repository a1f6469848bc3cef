"""What a Slurm job asks for goes to srun, and to nothing else."""

import pytest

from vlm.core.errors import ConfigError
from vlm.train.launch.launch import launch_line

JOB = {"partition": "gpu", "account": "lab", "time": "12:00:00"}


def test_partition_account_and_time_are_options_of_srun() -> None:
    line, _ = launch_line(["-r", "x"], nodes=2, gpus_per_node=8, launcher="srun", job=JOB)
    srun = line[: line.index("vlm")]
    assert {"--partition=gpu", "--account=lab", "--time=12:00:00"} < set(srun)
    without, _ = launch_line(["-r", "x"], nodes=2, gpus_per_node=8, launcher="srun", job=dict.fromkeys(JOB))
    assert not [word for word in without if word.startswith(("--partition", "--account", "--time"))]


@pytest.mark.parametrize("launcher", ["torchrun", "vlm"])
@pytest.mark.parametrize("name", JOB)
def test_another_launcher_refuses_them(launcher: str, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"--{name}={JOB[name]} with {launcher}"):
        launch_line(["-r", "x"], nodes=1, gpus_per_node=8, launcher=launcher, job={name: JOB[name]})
