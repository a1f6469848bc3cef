"""`vlm diff`: show which samples moved between two evaluations, whether by chance, and why."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlm.cli.show.say import say_json

if TYPE_CHECKING:
    from vlm.cli.show.screen import Screen
    from vlm.eval.saved.diff import Change, Comparison, SampleChange

app = typer.Typer()


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of an evaluation, or of a run with several.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The other folder.")],
    rows: Annotated[int, typer.Option(min=0, help="Samples that moved to show; --json has them all.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Compare two evaluations of one benchmark, sample by sample.

    \b
    vlm diff runs/eval/old/POPE/default runs/eval/new/POPE/default
    vlm diff runs/eval/V2PE/MM-NIAH/stride64 runs/eval/V2PE/MM-NIAH/default --json
    """
    from vlm.core.home import resolve
    from vlm.eval.saved.diff import compare_evaluations, find_pairs

    found = [compare_evaluations(pair) for pair in find_pairs(resolve(a), resolve(b))]
    if as_json:
        say_json(found, sort_keys=True)
        return
    for one in found:
        _show(one, rows)


def _show(found: "Comparison", rows: int) -> None:
    from rich.table import Table

    from vlm.cli.show.screen import Screen, bold
    from vlm.eval.saved.diff import CAUSES, KINDS

    console = Screen()
    about = [f"{side['model']}, {side['label']}" for side in (found["a"], found["b"])]
    console.print(bold(found["benchmark"]) + f": A {about[0]} → B {about[1]}")
    alone = [f"{n} {where}" for where, n in found["items"].items() if where != "both" and n]
    console.print(f"{found['items']['both']} items in both" + (f" ({', '.join(alone)})" if alone else ""))

    table = Table(title="change of the mean score", title_justify="left")
    for column in ("items", "A", "B", "B - A", "95 % interval", "p", "scored in both"):
        table.add_column(column, justify="left" if column == "items" else "right")
    for name, change in {"all": found["change"], **found["groups"]}.items():
        table.add_row(name, *_cells(change))
    console.print(table)
    console.print(f"p: {found['change']['test']}")
    for metric in found["metrics"][:1]:
        numbers = [f"{value:.1f}" if value is not None else "–" for value in (metric["a"], metric["b"])]
        console.print(f"headline metric {metric['name']}: {numbers[0]} → {numbers[1]}")

    console.print("what differs: " + (", ".join(found["differences"]) or "nothing that was recorded"))
    for setting, values in found["differences"].get("decode", {}).items():
        console.print(f"  {setting}: {values[0]} → {values[1]}")
    for kind, n in found["kinds"].items():
        console.print(f"{kind} {n}: {KINDS[kind]}")
    for causes, n in found["causes"].items():
        why = "; ".join(CAUSES[cause] for cause in causes.split(" + "))
        console.print(f"caused by {causes} {n}: {why}")
    _show_moved(console, found["moved"], rows)


def _show_moved(console: "Screen", moved: "list[SampleChange]", rows: int) -> None:
    from rich.table import Table

    if not moved or not rows:
        return
    table = Table(title=f"samples that moved, {min(rows, len(moved))} of {len(moved)}", title_justify="left")
    for column in ("id", "group", "kind", "score", "cause", "answer in A", "answer in B"):
        table.add_column(column)
    order = ("lost", "gained", "unanswered", "answered", "changed")
    for sample in sorted(moved, key=lambda s: order.index(s["kind"]))[:rows]:
        score = " → ".join("–" if x is None else f"{x:g}" for x in (sample["before"], sample["after"]))
        answers = ["–" if text is None else repr(text[:60]) for text in sample["answers"]]
        table.add_row(sample["id"], sample["group"], sample["kind"], score, " + ".join(sample["causes"]), *answers)
    console.print(table)


def _cells(change: "Change") -> list[str]:
    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    bounds = "" if change["low"] is None else f"{change['low']:+.1f} … {change['high']:+.1f}"
    values = [number(change["before"], ".1f"), number(change["after"], ".1f"), number(change["difference"], "+.1f")]
    return [*values, bounds, number(change["p"], ".3g"), str(change["items"])]
