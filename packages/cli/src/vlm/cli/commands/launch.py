"""`vlm launch`: `vlm train` on several GPUs or nodes."""

import os
import shutil
from typing import Annotated, Any

import typer

app = typer.Typer()


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def launch(
    context: typer.Context,
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="Name of a shipped recipe, or a YAML file.")],
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Processes on each, one for each GPU.")] = 1,
    launcher: Annotated[
        str, typer.Option(help="srun, torchrun or vlm (one node, ours); auto: srun in Slurm, else vlm.")
    ] = "auto",
    show: Annotated[bool, typer.Option("--print", "--dry-run", help="Show the line and run nothing.")] = False,
) -> None:
    """Train on NODES x GPUS_PER_NODE processes; other options go to `vlm train`. The line is printed, then run, unless
    something is wrong or missing: then every fault is named, as `vlm train` would, and nothing starts.

    Example: vlm launch --recipe v2pe-32k --nodes 4 --gpus-per-node 8
    """
    from vlm.core.errors import ConfigError, UnknownName
    from vlm.train.launch.launch import as_typed, launch_line
    from vlm.train.plan.plan import lacking
    from vlm.train.plan.preflight import faults, listed, refuse
    from vlm.train.recipe.recipe import load_recipe

    if launcher not in ("auto", "srun", "torchrun", "vlm"):
        raise UnknownName("launcher", launcher, ("auto", "srun", "torchrun", "vlm"))
    inside = "SLURM_JOB_ID" in os.environ
    if launcher == "auto":
        launcher = "srun" if inside or (nodes > 1 and shutil.which("srun")) else "torchrun" if nodes > 1 else "vlm"
    options = ["--recipe", recipe, *context.args]
    given = understood(options)  # what would stop every rank is told here, once
    if given["processes"]:
        raise ConfigError("--processes with `vlm launch`", fix="--nodes N --gpus-per-node G")
    resolved = load_recipe(recipe, run=given["run"], overrides=tuple(given["set_"] or ()), published=given["published"])
    command, env = launch_line(options, nodes=nodes, gpus_per_node=gpus_per_node, launcher=launcher, inside=inside)
    line = as_typed(command, env)
    total, here = nodes * gpus_per_node, 0 if launcher == "srun" else gpus_per_node
    found, missing = faults(resolved, total), lacking(resolved, gpus=total, here=here)
    if show:
        typer.echo(line)
        refuse(resolved.name, [*found, *missing] if found else ())
        if missing:  # the line is good all the same, on a machine that has them
            typer.echo("\n".join([f"{resolved.name} lacks here:", *listed(missing)]), err=True)
        return
    refuse(resolved.name, [*found, *missing], force=given["force"])
    typer.echo(line, err=True)
    command = [os.path.expandvars(word) for word in command]
    os.environ.update(env)
    try:
        os.execvp(command[0], command)
    except FileNotFoundError as error:
        from vlm.core.errors import HardwareError

        raise HardwareError(f"no {command[0]} on this machine", fix="--launcher vlm, or install it") from error


def understood(options: list[str]) -> dict[str, Any]:
    """What `vlm train` makes of its options, by its own parser, which ends with its usual message where it cannot."""
    from vlm.cli.commands.train import app as train

    return typer.main.get_command(train).make_context("vlm train", list(options)).params
