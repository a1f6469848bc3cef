"""Tables of costs on the terminal: an estimate, and planned beside published hours."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from vlm.cli.show.screen import Screen, bold, styled

if TYPE_CHECKING:
    from vlm.train.plan.fit import Estimate
    from vlm.train.plan.points import Point
    from vlm.train.plan.published import ComparedHours
    from vlm.train.plan.run_plan import RunPlan


def show_estimate(plan: "RunPlan") -> None:
    """Show bytes, FLOPs, transfers and hours of a recipe on a machine."""
    found = plan.estimate
    table = Table(title=f"{found.gpus} x {found.machine}", title_justify="left", show_header=False)
    table.add_row("parallel", found.parallel)
    parts = " + ".join(f"{name} {value:.2f}" for name, value in found.gb.items() if value)
    needed = bold(f"{found.gb_needed:.2f} GB")
    table.add_row("a GPU", Text.assemble(f"{parts} = ", needed, f" of {found.memory_gb:g}"))
    if found.gb_host:
        table.add_row("host memory", f"{found.gb_host:.1f} GB of optimizer states a node")
    phases = "\n".join(f"{name} {value:.2f}" for name, value in found.gb_activation_phases.items())
    table.add_row("activations, GB", phases)
    table.add_row("KV cache", f"{found.gb_kv_cache:.2f} GB for one sequence of max_length, in evaluation")
    again = found.flops_run / found.flops_model - 1
    table.add_row("FLOPs of a step", f"{found.flops_model:.3g}, and {again:.0%} computed again")
    table.add_row("sent by a GPU", ", ".join(f"{name} {value:.2f} GB a step" for name, value in found.gb_sent.items()))
    if plan.expected is not None:
        table.add_row("time, estimate", time_words(plan.expected))
    if plan.point is not None:
        table.add_row("time, published", published_words(plan.point))
        table.add_row("gap", plan.point.gap)
    table.add_row("time, at most", time_words(plan.bound))
    for note in found.notes:
        table.add_row(styled("note", "yellow"), note)
    Screen().print(table)


def time_words(found: "Estimate") -> str:
    """Say what a step and the run take, between which ends, and for which length of samples."""
    text = f"{interval(found.seconds_between)} s a step"
    if found.hours_between is not None:
        low, high = found.hours_between
        text += f", {interval(found.hours_between)} h, {low * found.gpus:,.0f} to {high * found.gpus:,.0f} GPU-hours"
    passes = "1 pass" if found.passes == 1 else f"{found.passes} passes"
    return f"{text}: {found.tokens_per_sample:,.0f} tokens a sample, {passes} a step"


def interval(ends: tuple[float, float]) -> str:
    """Write two numbers with the digits that they need.

    >>> interval((3.21, 6.42)), interval((43.2, 86.4))
    ('3.2 to 6.4', '43 to 86')
    """
    digits = 1 if ends[0] < 10 else 0
    return f"{ends[0]:,.{digits}f} to {ends[1]:,.{digits}f}"


def published_words(point: "Point") -> str:
    """Say what was published."""
    return f"{point.hours:g} h on {point.gpus} x {point.machine} ({point.source})"


def answer(plan: "RunPlan") -> str:
    """Return in one line whether a recipe fits a machine, and what it takes there beside what was published."""
    found = plan.estimate
    where = f"on each of {found.gpus} x {found.machine}"
    memory = f"{found.gb_needed:.1f} of {found.memory_gb:g} GB {where}"
    if found.problems:
        return f"does not fit: {'; '.join(found.problems)} ({memory})"
    bound, published = plan.bound, ""
    if point := plan.point:
        same = (point.gpus, point.machine) == (found.gpus, found.machine)
        published = f", published {point.hours:g} h" + ("" if same else f" on {point.gpus} x {point.machine}")
    if bound.hours_between is None:
        return f"fits: {memory}; at most {bound.seconds_between[1]:.3g} s a step, hours unknown until the data is here"
    text = f"fits: {memory}; at most {bound.hours_between[1]:,.1f} h"
    if plan.expected is None or plan.expected.hours_between is None:
        return f"{text}{published}, {bound.hours_between[1] * found.gpus:,.1f} GPU-hours"
    low, high = plan.expected.hours_between
    gpu_hours = f"{low * found.gpus:,.0f} to {high * found.gpus:,.0f} GPU-hours"
    return f"{text}, estimate {interval((low, high))} h{published}, {gpu_hours}"


def rows_words(plan: "RunPlan") -> str:
    """Say which rows need the fewest passes that fit, as options to type."""
    from vlm.train.plan.rows import LEFT, longest_rows

    if (found := longest_rows(plan)) is None:
        return f"no row of max_length {plan.recipe.max_length:,} fits with {LEFT:.0%} of the memory free"
    batch, bound = found[0].recipe.batch, found[1]
    tiles = f" --set batch.max_tiles={batch.max_tiles}" * (batch.max_tiles != plan.recipe.batch.max_tiles)
    return (
        f"fewest passes that fit: {bound.passes} a step ({bound.gb_needed:.1f} GB), now {plan.bound.passes}: "
        f"--set batch.max_tokens={batch.max_tokens}{tiles}"
    )


def show_published(points: "Iterable[ComparedHours]") -> None:
    """Show planned beside published hours, and below them what separates the two."""
    table = Table(title="hours, planned and published (nothing tuned)", title_justify="left")
    columns = ("recipe", "machine", "published", "its shape", "without it", "% of peak", "our recipe", "at most")
    for column in columns:
        table.add_column(column, no_wrap=column == "recipe")
    points = list(points)
    for p in points:
        table.add_row(
            p["recipe"],
            f"{p['gpus']} x {p['machine']}",
            f"{p['published_hours']:g}",
            interval(p["between"]).replace(" to ", "-"),
            interval(p["left_out"]).replace(" to ", "-"),
            f"{p['efficiency']:.0%}",
            interval(p["our_between"]).replace(" to ", "-"),
            f"{p['bound_hours']:,.0f}",
        )
    screen = Screen()
    screen.print(table)
    for p in points:
        screen.print(f"{p['recipe']}, {p['gpus']} GPUs: {p['gap']}", soft_wrap=True)
