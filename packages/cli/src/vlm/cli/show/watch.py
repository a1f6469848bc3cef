"""What trainings and evaluations do, on the terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType

from vlm.cli.live import SILENT, WorkState
from vlm.cli.show.screen import styled
from vlm.core.progress import amount, duration

ORDER = ("running", "silent", "failed", "stopped", "finished")
COLORS = {"running": "green", "silent": "yellow", "failed": "red", "stopped": "yellow", "finished": "bold"}
HANGS = 600.0
"""Seconds without a step after which a living process is said to make none."""


def work_lines(state: WorkState) -> list[str]:
    """Return the lines that tell a state; the first one has it in short."""
    lines = [f"{state.kind} {state.name}: {in_short(state)}"]
    if numbers := number_words(state):
        lines.append(f"  {', '.join(numbers)}")
    if state.ledger and state.kind == "training":
        kinds = " + ".join(f"{kind} {n:,}" for kind, n in state.ledger.items() if kind != "in")
        lines.append(f"  ledger: in {state.ledger.get('in', 0):,} = {kinds}")
    elif state.ledger:
        lines.append("  outcomes: " + ", ".join(f"{kind} {n:,}" for kind, n in state.ledger.items()))
    if state.status == "silent":
        host = f", or {state.host} is down" if state.host else ""
        lines.append(
            f"  no sign of life for {duration(state.age)} (alive: every {SILENT:.0f} s at least): it was killed{host}; "
            "rerun the same command to continue"
        )
    if state.status == "running" and state.moved > HANGS:
        what = "step" if state.kind == "training" else "batch"
        lines.append(f"  alive on {state.host}, but no {what} for {duration(state.moved)}")
    if state.why:
        lines.append(f"  {state.why}")
    if state.where:
        what = "its model" if state.kind == "training" else "its results"
        lines.append(f"  {what}: {state.where}")
    return lines


def in_short(state: WorkState) -> str:
    """Return status, amount and time left of some work."""
    unit = "steps" if state.kind == "training" else "items"
    total = state.total
    share = f" ({min(1.0, state.done / total):.0%})".replace("%", " %") if total and state.status != "finished" else ""
    how_much = f"{state.done:,} {unit}" if state.status == "finished" else amount(state.done, total, unit)
    parts = [state.status, f"{how_much}{share}"]
    if state.status == "running":
        parts += [f"{duration(state.left)} left"] if state.left is not None else []
        parts += [f"last sign of life {duration(state.age)} ago" + (f" on {state.host}" if state.host else "")]
    return ", ".join(parts)


def number_words(state: WorkState) -> list[str]:
    """Return the numbers of some work in words: loss, speed, wait for data, memory, score."""
    v = state.values
    words = []
    if "loss" in v:
        words.append(
            f"loss {v['loss']:.4f}" + (f" (mean of the last steps {v['loss_mean']:.4f})" if "loss_mean" in v else "")
        )
    if "lr" in v:
        words.append(f"lr {v['lr']:.3g}")
    if "tokens_per_s" in v:
        words.append(f"{v['tokens_per_s']:,.0f} tokens/s")
    if "step_s" in v:
        wait = f" and {v['data_wait_s']:.3g} s of waiting for data" if "data_wait_s" in v else ""
        words.append(f"{v['step_s']:.3g} s a step{wait}")
    if "memory_gb" in v:
        words.append(f"{v['memory_gb']:.1f} GB")
    if "score" in v:
        words.append(f"score {100 * v['score']:.1f}")
    return words


def ordered(states: Sequence[WorkState]) -> list[WorkState]:
    """Return states, what runs first."""
    return sorted(states, key=lambda state: (ORDER.index(state.status), state.name))


def watch_view(states: Sequence[WorkState]) -> RenderableType:
    """Return what a live screen shows."""
    texts = []
    for state in ordered(states):
        first, *rest = work_lines(state)
        texts += [styled(first, COLORS[state.status]), *map(styled, rest)]
    return Group(*texts)
