"""`vlm launch`: `vlm train` on several GPUs or nodes."""

import os
import shutil
from typing import Annotated

import typer

from vlm.cli.options import TrainOptions, grouped
from vlm.cli.show.say import say

app = typer.Typer()


@app.command()
@grouped
def launch(
    options: TrainOptions,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Processes on each, one for each GPU.")] = 1,
    launcher: Annotated[
        str, typer.Option(help="srun, torchrun or vlm (one node, ours); auto: srun in Slurm, else vlm.")
    ] = "auto",
    partition: Annotated[str | None, typer.Option(help="Slurm partition, for srun.")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm account, for srun.")] = None,
    time: Annotated[str | None, typer.Option(help="Longest time, for srun: 30, 12:00:00, 2-00.")] = None,
    show: Annotated[bool, typer.Option("--print", "--dry-run", help="Show the line and run nothing.")] = False,
    processes: Annotated[int | None, typer.Option("--processes", "-n", hidden=True)] = None,
) -> None:
    """Train on NODES x GPUS_PER_NODE processes. The line is printed, then run.

    Nothing starts when something is wrong or missing: every fault is named, as `vlm train` would.

    Example: vlm launch --recipe v2pe-32k --nodes 4 --gpus-per-node 8
    """
    from vlm.cli.own_data import recipe_of
    from vlm.core.errors import ConfigError, HardwareError, UnknownName
    from vlm.train.launch.launch import LAUNCHERS, as_typed, launch_line
    from vlm.train.plan.faults import listed, refuse
    from vlm.train.plan.run_plan import RunPlan

    if launcher not in ("auto", *LAUNCHERS):
        raise UnknownName("launcher", launcher, ("auto", *LAUNCHERS))
    if processes:
        raise ConfigError("--processes with `vlm launch`", fix="--nodes N --gpus-per-node G")
    inside = "SLURM_JOB_ID" in os.environ
    if launcher == "auto":
        launcher = "srun" if inside or (nodes > 1 and shutil.which("srun")) else "torchrun" if nodes > 1 else "vlm"
    recipe, _ = recipe_of(options, nodes * gpus_per_node, dry_run=show)
    command, env = launch_line(
        options.words(),
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        launcher=launcher,
        inside=inside,
        job={"partition": partition, "account": account, "time": time},
    )
    line = as_typed(command, env)
    plan = RunPlan.resolve(recipe, nodes=nodes, gpus_per_node=gpus_per_node)
    # what would stop every rank is printed here, once
    faults, missing = plan.faults, plan.missing_for(plan.processes, here=0 if launcher == "srun" else gpus_per_node)
    if show:
        say(line)
        refuse(recipe.name, [*faults, *missing] if faults else ())
        if missing:  # the line is good all the same, on a machine that has them
            say("\n".join([f"{recipe.name}: missing here:", *listed(missing)]), err=True)
        return
    refuse(recipe.name, [*faults, *missing], force=options.force)
    say(line, err=True)
    command = [os.path.expandvars(word) for word in command]
    os.environ.update(env)
    try:
        os.execvp(command[0], command)
    except FileNotFoundError as error:
        raise HardwareError(f"no {command[0]} on this machine", fix="--launcher vlm, or install it") from error
