"""`vlm train`: run one stage, or go on with it."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def train(
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="Name of a shipped recipe, or a YAML file.")],
    run: Annotated[
        Path | None, typer.Option(help="Folder of the run; stages go to RUN/train/RECIPE. Default: runs/<first word>.")
    ] = None,
    processes: Annotated[int, typer.Option("--processes", "-n", min=1, help="Processes on this machine.")] = 1,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a key: optimizer.lr=1e-4.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Resolve, plan and show what is lacking; train nothing.")] = False,
    force: Annotated[bool, typer.Option(help="Start although the hardware is less than published.")] = False,
    allow_change: Annotated[bool, typer.Option(help="Go on with a run although its recipe changed.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress bar.")] = False,
) -> None:
    """Train one stage from a recipe. Run the same command again to go on after a kill; a finished stage is a no-op.

    Example: vlm train --recipe quickstart-convllava-stage1
    """
    from vlm.core.home import resolve
    from vlm.train.recipe import load_recipe

    resolved = load_recipe(recipe, run=str(run) if run else None, overrides=tuple(set_ or ()))
    out = resolve(run or f"runs/{resolved.name.split('-')[0]}") / "train" / resolved.name
    spawned = "RANK" in os.environ  # by ourselves, torchrun or Slurm
    if not spawned:
        from vlm.cli.show import show_plan
        from vlm.train.plan import make_plan, refuse_lacking

        gpus = resolved.hardware.gpus if resolved.hardware else processes
        plan = make_plan(resolved, processes=gpus)
        if not quiet or dry_run:
            show_plan(resolved, plan)
        if dry_run:
            return
        refuse_lacking(plan, force=force)
    from vlm.train.launch import end_with_launcher, launch

    if processes > 1 and not spawned:
        if code := launch([sys.executable, "-m", "vlm.cli.main", *sys.argv[1:]], processes):
            raise typer.Exit(code)
        return
    end_with_launcher()
    from vlm.core.errors import Preempted
    from vlm.train.loop import train as run_training

    try:
        folder = run_training(resolved, out, quiet=quiet, resume_changed=allow_change)
    except Preempted as stop:
        if os.environ.get("RANK", "0") == "0":
            typer.echo(f"resume me: {stop}", err=True)
        return
    if os.environ.get("RANK", "0") == "0":
        typer.echo(folder)
