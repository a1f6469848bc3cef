"""`vlm watch`: what trainings and evaluations do, live, from their files alone."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from vlm.cli.live import WorkState, as_json, find_work, read_work
from vlm.cli.show.say import say, say_json
from vlm.cli.show.screen import Screen
from vlm.cli.show.watch import ordered, watch_view, work_lines
from vlm.core.errors import DataError, UnknownName
from vlm.core.home import resolve, runs
from vlm.core.text import printable

app = typer.Typer()


@app.command()
def watch(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run, a stage or an evaluation. Default: all below runs/.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print the state of now and end.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    json_: Annotated[bool, typer.Option("--json", help="The state of now as JSON.")] = False,
) -> None:
    """Show loss, speed, time left, wait for data and ledger of trainings and evaluations, those that run first.

    Only files are read: it works while they run, on every machine that sees the disk, and starts or stops nothing.
    Ctrl-C ends it; a RUN that is named ends it too once nothing of it runs. Without a terminal it prints once.

    Example: vlm watch quickstart
    """
    top = find_run(run)
    if json_:
        say_json([as_json(state) for state in ordered(states_below(top, run))])
        return
    if once or not sys.stdout.isatty():
        for state in ordered(states_below(top, run)):
            say("\n".join(work_lines(state)))
        return
    from rich.live import Live

    try:
        with Live(console=Screen(), auto_refresh=False) as live:
            while True:
                found = states_below(top, run)
                live.update(watch_view(found), refresh=True)
                if run is not None and not any(state.status == "running" for state in found):
                    return
                time.sleep(every)
    except KeyboardInterrupt:
        return  # it is how one leaves; nothing was interrupted


def find_run(run: str | None) -> Path:
    """Return the folder of a run by its name below runs/ or its path; all runs without one.

    Raises:
        UnknownName: no such folder; names the nearest.
    """
    if run is None:
        return runs()
    for folder in (runs() / run, Path(run).absolute(), resolve(run)):
        if folder.is_dir():
            return folder
    names = {part for folder in find_work(runs()) for part in (folder.name, folder.relative_to(runs()).parts[0])}
    places = [folder for folder in find_work(runs()) if folder.name == run]
    if len(places) == 1:
        return places[0]
    raise UnknownName("run", printable(run), names, fix="`vlm watch` shows all below runs/")


def states_below(top: Path, run: str | None) -> list[WorkState]:
    """Return the state of everything below a folder.

    Raises:
        DataError: there is nothing.
    """
    found = [read_work(folder) for folder in find_work(top)]
    if not found:
        where = printable(run) if run is not None else top
        raise DataError(
            f"no training and no evaluation in {where}",
            fix="start one: `vlm list recipes` names what can be trained, `vlm list benchmarks` what can be asked",
        )
    return found
