"""Tables of a resolved run on the terminal."""

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from vlm.cli.show.say import say
from vlm.cli.show.screen import Screen, bold, styled

if TYPE_CHECKING:
    from vlm.train.plan.run_plan import RunPlan


def show_plan(plan: "RunPlan", to: Screen | None = None, *, data: bool = False) -> None:
    """Show a recipe resolved and planned: parameters, states, steps, differences, and what is missing here.

    With `data` each of its sets, else how many there are.
    """
    from vlm.train.plan.faults import by_fix

    recipe, optimizer = plan.recipe, plan.recipe.optimizer
    table = Table(title=f"{recipe.name}: {recipe.title}", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row(
        "parameters",
        ", ".join(f"{k} {v:,}" for k, v in plan.parameters.items()) + f" = {sum(plan.parameters.values()):,}",
    )
    table.add_row("trained", "\n".join(f"{k}  {v:,}" for k, v in plan.trainable.items()))
    sets = [f"{d.name} x {d.repeat:g}  {d.file}" for d in recipe.data]
    table.add_row(
        "data", "\n".join(sets) if data or len(sets) == 1 else f"{len(sets)} sets (`vlm plan --data` lists them)"
    )
    steps = f"{plan.steps:,} steps" if plan.steps else "steps unknown until the data is here"
    table.add_row("steps", f"{steps} of {recipe.batch.samples} samples, at most {plan.tokens_per_step:,} tokens each")
    if plan.unseen:
        table.add_row(styled("not seen", "yellow"), unseen_words(plan))
    table.add_row(
        "optimizer",
        f"AdamW lr {optimizer.lr:g}, {optimizer.schedule}, warm-up {optimizer.warmup:g}, "
        f"decay {optimizer.weight_decay:g}",
    )
    table.add_row("image", f"{plan.tokens_per_image} tokens a tile; positions {recipe.strides or 'arange'}")
    if beyond := plan.beyond_positions:
        table.add_row(styled("positions", "yellow"), beyond)
    states = f"{plan.gb_weights:.2f} + {plan.gb_gradients:.2f} + {plan.gb_optimizer:.2f} = {plan.gb_states:.2f} GB"
    table.add_row(
        "states",
        f"{states} a process (weights + gradients + AdamW; "
        f"ZeRO-{recipe.zero_stage}, {plan.processes} processes, {recipe.precision})",
    )
    for d in recipe.differences:
        table.add_row("differs", f"{d.key}: ours {d.ours}, published {d.published}. {d.why}")
    for what, fix, found in by_fix(plan.missing):
        table.add_row(styled(f"missing {what}", "yellow"), Text("\n").join([*map(styled, found), bold(fix)]))
    (to or Screen(stderr=True)).print(table)


def unseen_words(plan: "RunPlan") -> str:
    """Say which samples no step takes, and how to see them."""
    step = plan.recipe.batch.samples
    return (
        f"{plan.unseen:,} of {plan.samples:,} samples: the end of the last pass does not fill a step of {step:,}. "
        f"--set epochs=null --set steps={(plan.steps or 0) + 1} sees them, and begins another pass"
    )


def show_dry_run(plan: "RunPlan", lines: list[str]) -> None:
    """Show on standard output what `vlm train --dry-run` adds: the recipe, its mixture, and the lines that start it."""
    import yaml

    out, recipe = Screen(), plan.recipe
    apart = ("data", "sources", "differences")  # they have tables of their own
    resolved = {key: value for key, value in recipe.model_dump(mode="json").items() if key not in apart}
    say(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    table = Table(title="data mixture", title_justify="left")
    for column in ("set", "records", "repeat", "samples an epoch", "share"):
        names = max((len(row["name"]) for row in plan.mixture), default=0)  # names stay whole, as they must be typed
        table.add_column(column, justify="left" if column == "set" else "right", min_width=names * (column == "set"))
    for row in plan.mixture:
        records, samples = (f"{n:,}" if n is not None else "not here yet" for n in (row["records"], row["samples"]))
        share = "" if row["share"] is None else f"{row['share']:.1%}"
        table.add_row(row["name"], records, f"{row['repeat']:g}", samples, share)
    out.print(table)
    rows = f"{recipe.batch.samples} samples, at most {plan.tokens_per_step:,} tokens"
    each = f"up to {plan.samples_per_group} for each of {plan.groups} groups of {recipe.sequence_parallel.size} GPUs"
    steps = f"{plan.steps:,} steps" if plan.steps else "steps unknown until the data is here"
    out.print(f"a step: {rows}; {each}; {steps}", soft_wrap=True)
    for line in lines:  # to be copied: a table's printer would wrap it
        say(line, bold=True)
