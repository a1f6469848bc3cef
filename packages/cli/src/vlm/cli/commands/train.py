"""`vlm train`: run one stage, or go on with it."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from vlm.train.recipe.recipe import Recipe

app = typer.Typer()

NODE = 8
"""GPUs of a node in a dry run, as on the published machines."""


@app.command()
def train(
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="Name of a shipped recipe, or a YAML file.")],
    run: Annotated[
        Path | None, typer.Option(help="Folder of the run; stages go to RUN/train/RECIPE. Default: runs/<first word>.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", "-n", min=1, help="Processes on this machine; default 1.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a key: optimizer.lr=1e-4.")] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Do as the published scripts did wherever the recipe differs.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Resolve, plan, show mixture and launch line, name every fault; train nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: machine-readable.")] = False,
    force: Annotated[bool, typer.Option(help="Start although the hardware is less than published.")] = False,
    allow_change: Annotated[bool, typer.Option(help="Go on with a run although its recipe changed.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress bar.")] = False,
) -> None:
    """Train one stage from a recipe. Run the same command again to go on after a kill; a finished stage is a no-op.

    Example: vlm train --recipe quickstart-convllava-stage1
    """
    from vlm.core.home import resolve
    from vlm.train.launch.slurm import adopt, one_voice
    from vlm.train.recipe.recipe import load_recipe

    resolved = load_recipe(recipe, run=str(run) if run else None, overrides=tuple(set_ or ()), published=published)
    out = resolve(run or f"runs/{resolved.name.split('-')[0]}") / "train" / resolved.name
    adopt(processes)
    spawned = "RANK" in os.environ  # by ourselves, torchrun or Slurm
    if not spawned:
        from vlm.cli.show.estimate import show_estimate
        from vlm.cli.show.plan import show_dry_run, show_plan
        from vlm.train.plan.plan import estimate_on, lacking, make_plan
        from vlm.train.plan.preflight import faults, refuse

        gpus = resolved.hardware.gpus if resolved.hardware else 1
        planned = processes or gpus
        found = faults(resolved, planned if dry_run else processes or 1)
        if any(fault["what"] == "recipe" for fault in found):
            refuse(resolved.name, [*found, *lacking(resolved)], force=force)
        plan = make_plan(resolved, processes=planned)
        if dry_run:
            facts = dry_run_facts(resolved, plan.as_dict(), planned, typed(recipe, run, set_, published))
            nodes, each = node_shape(planned)
            machine = "a100-80" if resolved.hardware else "cpu"
            estimate = estimate_on(resolved, machine, nodes=nodes, gpus_per_node=each, steps=plan.steps)
            if as_json:
                typer.echo(
                    json.dumps({**facts, "estimate": estimate.as_dict(), "faults": [*found, *plan.lacking]}, indent=1)
                )
            else:
                show_plan(resolved, plan, to=Console())
                show_estimate(estimate)
                show_dry_run(facts)
            refuse(resolved.name, found)
            return
        if not quiet:
            show_plan(resolved, plan)
        refuse(resolved.name, [*found, *plan.lacking], force=force)
    from vlm.train.launch.launch import end_with_launcher, launch

    if processes is not None and processes > 1 and not spawned:
        if code := launch([sys.executable, "-m", "vlm.cli.main", *sys.argv[1:]], processes):
            raise typer.Exit(code)
        return
    end_with_launcher()
    from vlm.core.errors import Preempted
    from vlm.train.run.loop import train as run_training

    with one_voice(out):
        try:
            folder = run_training(resolved, out, quiet=quiet, resume_changed=allow_change)
        except Preempted as stop:
            if os.environ.get("RANK", "0") == "0":
                typer.echo(f"resume me: {stop}", err=True)
            return
    if os.environ.get("RANK", "0") == "0":
        typer.echo(folder)


def typed(recipe: str, run: Path | None, overrides: list[str] | None, published: bool) -> list[str]:
    """The options that choose a run, as they are typed."""
    words = ["--recipe", recipe, *(["--run", str(run)] if run else [])]
    words += [w for override in overrides or () for w in ("--set", override)]
    return words + ["--published"] * published


def dry_run_facts(recipe: "Recipe", plan: dict[str, Any], processes: int, options: list[str]) -> dict[str, Any]:
    """What a dry run shows: the resolved recipe, mixture, step, plan, and the line that starts it."""
    from vlm.train.plan.preflight import mixture

    size = recipe.sequence_parallel.size
    groups = processes // size
    step = {
        "samples": recipe.batch.samples,
        "tokens": plan["tokens_per_step"],
        "groups": groups,
        "group_size": size,
        "samples_a_group": -(-recipe.batch.samples // groups),
        "steps": plan["steps"],
    }
    return {
        "recipe": recipe.model_dump(mode="json"),
        "trainable": plan["trainable"],
        "mixture": mixture(recipe),
        "step": step,
        "plan": plan,
        "launch": launch_lines(processes, options),
    }


def node_shape(processes: int) -> tuple[int, int]:
    """(nodes, GPUs of each): at most NODE GPUs, all nodes alike."""
    each = max(n for n in range(1, NODE + 1) if processes % n == 0)
    return processes // each, each


def launch_lines(processes: int, options: list[str]) -> list[str]:
    """The lines that start a run, each as good as the others."""
    from vlm.train.launch.launch import as_typed, launch_line

    nodes, each = node_shape(processes)
    names = ["vlm"] if nodes == 1 else ["srun", "torchrun"]
    lines = [as_typed(*launch_line(options, nodes=nodes, gpus_per_node=each, launcher=name)) for name in names]
    short = ["vlm", "launch", *options, "--nodes", str(nodes), "--gpus-per-node", str(each)]
    return lines if nodes == 1 else [shlex.join(short), *lines]
