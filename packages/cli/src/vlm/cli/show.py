"""Tables on the terminal."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from vlm.train.plan import Plan
    from vlm.train.recipe import Recipe

console = Console(stderr=True)


def show_plan(recipe: "Recipe", plan: "Plan") -> None:
    """A recipe resolved and planned: parameters, states, steps, disagreements, what is lacking."""
    optimizer = recipe.optimizer
    table = Table(title=f"{recipe.name}: {recipe.title}", title_justify="left", show_header=False)
    table.add_row(
        "parameters",
        ", ".join(f"{k} {v:,}" for k, v in plan.parameters.items()) + f" = {sum(plan.parameters.values()):,}",
    )
    table.add_row("trained", "\n".join(f"{k}  {v:,}" for k, v in plan.trainable.items()))
    table.add_row("data", "\n".join(f"{d.name} x {d.repeat:g}  {d.file}" for d in recipe.data))
    steps = f"{plan.steps:,} steps" if plan.steps else "steps unknown until the data is here"
    table.add_row("steps", f"{steps} of {recipe.batch.samples} samples, at most {plan.tokens_per_step:,} tokens each")
    table.add_row(
        "optimizer",
        f"AdamW lr {optimizer.lr:g}, {optimizer.schedule}, warm-up {optimizer.warmup:g}, "
        f"decay {optimizer.weight_decay:g}",
    )
    table.add_row("image", f"{plan.tokens_per_image} tokens a tile; positions {recipe.strides or 'arange'}")
    states = f"{plan.gb_weights:.2f} + {plan.gb_gradients:.2f} + {plan.gb_optimizer:.2f} = {plan.gb_states:.2f} GB"
    table.add_row(
        "states",
        f"{states} a process (weights + gradients + AdamW; "
        f"ZeRO-{plan.zero_stage}, {plan.processes} processes, {recipe.precision})",
    )
    for d in recipe.differences:
        table.add_row("differs", f"{d.key}: ours {d.ours}, published {d.published}. {d.why}")
    for lack in plan.lacking:
        table.add_row(f"[yellow]lacks {lack['what']}", f"{lack['found']}\n[bold]{lack['fix']}")
    console.print(table)
