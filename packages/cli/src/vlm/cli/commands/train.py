"""`vlm train`: run one stage, or a fine-tuning on one's own data, or continue it."""

import os
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm.cli.options import TrainOptions, grouped
from vlm.cli.show.say import say, say_json
from vlm.core.extras import require, uncollected

if TYPE_CHECKING:
    from vlm.train.plan.run_plan import RunPlan

app = typer.Typer()


@app.command()
@grouped
def train(
    options: TrainOptions,
    processes: Annotated[
        int | None, typer.Option("--processes", "-n", min=1, help="Processes on this machine; default 1.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Resolve, plan, show mixture and launch line, name every fault; train nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: machine-readable.")] = False,
) -> None:
    """Train one stage from a recipe, or a model on your own data. Rerun to continue after a kill.

    A finished stage is a no-op.

    Examples: vlm train --recipe quickstart-convllava-stage1

    vlm train -m InternVL2-2B --data pets.csv --lora
    """
    from vlm.cli.own_data import recipe_of
    from vlm.train.launch.slurm import adopt, one_voice

    recipe, out = recipe_of(options, processes, dry_run=dry_run)
    adopt(processes)
    plan = None
    if "RANK" not in os.environ:  # else started by ourselves, torchrun or Slurm, after these checks
        with uncollected():
            from vlm.train.plan.run_plan import RunPlan

        plan = RunPlan.resolve(recipe, processes)
        if dry_run:
            show_dry_run_of(plan, options, as_json=as_json)
            return
        require("train", "training")
        check_before_start(plan, processes or 1, options)
    from vlm.train.launch.launch import end_with_launcher, launch

    if processes is not None and processes > 1 and plan is not None:
        if code := launch([sys.executable, "-m", "vlm.cli.main", *sys.argv[1:]], processes, out / "logs"):
            raise typer.Exit(code)
        return
    end_with_launcher()
    from vlm.core.errors import Preempted

    with uncollected():
        from vlm.train.run.loop import train as run_training

    first = os.environ.get("RANK", "0") == "0"
    was_finished = (out / "model/config.json").exists()
    with one_voice(out):
        try:
            folder = run_training(recipe, out, plan=plan, quiet=options.quiet, resume_changed=options.allow_change)
        except Preempted as stop:
            if first:
                say(f"resume me: {stop}", err=True)
            return
    if first:
        say(folder)
        done = "was finished before" if was_finished else "finished"
        say(f"{recipe.name} {done}: its model is in {folder}", err=True)


def check_before_start(plan: "RunPlan", processes: int, options: TrainOptions) -> None:
    """Show the plan, and raise an error that names every fault of a run on that many processes, if there are any."""
    from vlm.cli.show.plan import show_plan
    from vlm.train.plan.faults import refuse

    faults = plan.faults_on(processes)
    if not options.quiet and not any(fault["what"] == "recipe" for fault in faults):
        show_plan(plan)
    refuse(plan.recipe.name, [*faults, *plan.missing], force=options.force)


def show_dry_run_of(plan: "RunPlan", options: TrainOptions, *, as_json: bool) -> None:
    """Show a plan, its estimate, its mixture and the lines that start it; then raise an error for every fault."""
    from vlm.cli.show.estimate import show_estimate
    from vlm.cli.show.plan import show_dry_run, show_plan
    from vlm.cli.show.screen import Screen
    from vlm.train.plan.faults import refuse

    faults = plan.faults
    if any(fault["what"] == "recipe" for fault in faults):
        refuse(plan.recipe.name, [*faults, *plan.missing], force=options.force)
    lines = launch_lines(plan, options.chosen())
    if as_json:
        found = {"estimate": plan.estimate.as_dict(), "faults": [*faults, *plan.missing]}
        say_json({**dry_run_facts(plan, lines), **found})
    else:
        show_plan(plan, to=Screen())
        show_estimate(plan)
        show_dry_run(plan, lines)
    refuse(plan.recipe.name, faults)


def dry_run_facts(plan: "RunPlan", lines: list[str]) -> dict[str, Any]:
    """Return what a dry run shows, for JSON: the resolved recipe, mixture, step, plan, and the lines that start it."""
    return {
        "recipe": plan.recipe.model_dump(mode="json"),
        "trainable": plan.trainable,
        "mixture": plan.mixture,
        "step": {
            "samples": plan.recipe.batch.samples,
            "tokens": plan.tokens_per_step,
            "groups": plan.groups,
            "group_size": plan.recipe.sequence_parallel.size,
            "samples_a_group": plan.samples_per_group,
            "steps": plan.steps,
        },
        "plan": plan.as_dict(),
        "launch": lines,
    }


def launch_lines(plan: "RunPlan", options: list[str]) -> list[str]:
    """Return the lines that start a run, each as good as the others."""
    from vlm.train.launch.launch import as_typed, launch_line

    nodes, each = plan.nodes, plan.gpus_per_node
    names = ["vlm"] if nodes == 1 else ["srun", "torchrun"]
    lines = [as_typed(*launch_line(options, nodes=nodes, gpus_per_node=each, launcher=name)) for name in names]
    short = ["vlm", "launch", *options, "--nodes", str(nodes), "--gpus-per-node", str(each)]
    return lines if nodes == 1 else [shlex.join(short), *lines]
