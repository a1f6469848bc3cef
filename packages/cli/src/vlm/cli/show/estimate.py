"""Tables of costs on the terminal: an estimate, and predicted against published hours."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from vlm.cli.show.screen import Screen, bold, styled

if TYPE_CHECKING:
    from vlm.train.plan.fit import Estimate
    from vlm.train.plan.published import ComparedHours


def show_estimate(found: "Estimate") -> None:
    """Show bytes, FLOPs, transfers and hours of a recipe on a machine."""
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
    time = f"{found.seconds:.3g} s a step"
    if found.hours is not None:
        time += f", {found.hours:.3g} h, {found.gpu_hours:,.0f} GPU-hours"
    table.add_row("time, at most", time)
    for note in found.notes:
        table.add_row(styled("note", "yellow"), note)
    Screen().print(table)


def answer(found: "Estimate") -> str:
    """Return in one line whether a recipe fits a machine, and what it takes there."""
    where = f"on each of {found.gpus} x {found.machine}"
    memory = f"{found.gb_needed:.1f} of {found.memory_gb:g} GB {where}"
    if found.problems:
        return f"does not fit: {'; '.join(found.problems)} ({memory})"
    if found.hours is None:
        return f"fits: {memory}; at most {found.seconds:.3g} s a step, hours unknown until the data is here"
    return f"fits: {memory}; at most {found.hours:,.1f} h, {found.gpu_hours:,.1f} GPU-hours"


def show_published(points: "Iterable[ComparedHours]") -> None:
    """Show predicted against published hours."""
    table = Table(title="hours, predicted and published (nothing tuned)", title_justify="left")
    for column in ("recipe", "machine", "tokens a sample", "predicted", "published", "ratio"):
        table.add_column(column)
    for p in points:
        numbers = f"{p['tokens_per_sample']:g}", f"{p['predicted_hours']:.1f}", f"{p['published_hours']:g}"
        table.add_row(p["recipe"], f"{p['gpus']} x {p['machine']}", *numbers, f"{p['ratio']:.2f}")
    Screen().print(table)
