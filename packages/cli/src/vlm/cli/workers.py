"""`vlm eval --workers N`: several processes share the items of a benchmark, and the GPUs of this machine.

The published scripts ask for it with GPUS and GPUS_PER_TASK: 8 GPUs at 2 a task are `--workers 4`.
"""

import os
import sys
from dataclasses import replace

import typer

from vlm.cli.options import PlacementOptions
from vlm.core.errors import ConfigError


def work(workers: int, shard: str, processes: int) -> int | None:
    """Return the number of this worker; None in the process that started them all here, once they are done.

    srun may start them too: `srun --ntasks=4 --gpus-per-task=2 vlm eval ... --workers 4`.

    Raises:
        ConfigError: Options that share in another way, GPUs that the workers do not divide, or another number of tasks.
        Exit: A worker failed; with its exit code.
    """
    from vlm.train.launch.launch import end_with_launcher, launch
    from vlm.train.launch.slurm import adopt

    if shard != "0/1" or processes > 1:
        other = f"--processes {processes}" if processes > 1 else f"--shard {shard}"
        raise ConfigError(f"--workers {workers} with {other}", expected="one way to share the items")
    adopt(workers)
    if "RANK" in os.environ:
        end_with_launcher()
        return int(os.environ["RANK"])
    shares = share_gpus(visible_gpus(), workers)
    code = launch([sys.executable, "-m", "vlm.cli.main", *sys.argv[1:]], workers, own=shares)
    if code:
        raise typer.Exit(code)
    return None


def visible_gpus() -> list[str]:
    """Return the numbers or names of the GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def share_gpus(gpus: list[str], workers: int) -> list[dict[str, str]]:
    """Return the variables of each worker: its equal share of the GPUs, nothing where there are none.

    >>> share_gpus(["0", "1", "2", "3"], 2)
    [{'CUDA_VISIBLE_DEVICES': '0,1'}, {'CUDA_VISIBLE_DEVICES': '2,3'}]

    Raises:
        ConfigError: The workers do not divide the GPUs.
    """
    each, rest = divmod(len(gpus), workers)
    if gpus and (rest or not each):
        divisors = [str(n) for n in range(1, len(gpus) + 1) if len(gpus) % n == 0]
        raise ConfigError(
            f"--workers {workers} with {len(gpus)} GPUs", expected=f"a number that divides them: {', '.join(divisors)}"
        )
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * each : (i + 1) * each])} if gpus else {} for i in range(workers)]


def over_gpus(placement: PlacementOptions) -> PlacementOptions:
    """Return the placement of a worker: layers over all its GPUs when it has several and no device was named."""
    several = "," in os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return replace(placement, device="map") if several and placement.device == "auto" else placement
