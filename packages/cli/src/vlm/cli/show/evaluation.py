"""Progress and tables of `vlm eval` on the terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.core.errors import VlmError
from vlm.core.progress import Progress

if TYPE_CHECKING:
    from vlm.eval.run.summary import MetricRow, Summary

SHOWN = 8
"""Metrics printed after a benchmark, the headline first; the rest is in the files."""


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int, float | None], None]]:
    """Show a bar on standard error, or lines in a log.

    It yields the function that moves it: items done, items in all, mean score so far.
    """
    with Progress(title, unit="items") as shown:

        def progress(done: int, total: int, mean: float | None) -> None:
            shown.update(done, total, "" if mean is None else f"score {100 * mean:.1f}")

        yield progress


def show_evaluation(summary: "Summary", target: Path) -> None:
    """Print the metrics of one evaluation, its outcomes, and what limits a comparison."""
    from rich.table import Table

    from vlm.cli.show.screen import Screen

    table = Table(title=f"{summary['title']} · {summary['model']} · {target.name}", title_justify="left")
    for column in ("metric", "score", "95 % interval", "strict", "scored / total"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    strict = {m["name"]: m["value"] for m in summary["strict_metrics"]}
    for m in summary["metrics"][:SHOWN]:
        table.add_row(m["name"], *_numbers(m)[:2], number(strict.get(m["name"])), _numbers(m)[2])
    console = Screen()
    console.print(table)
    headline = summary["metrics"][0]
    if headline["value"] is None or ("judge" in summary and summary["judge"]["note"]):
        console.print(f"{headline['name']}: {headline['note']}", soft_wrap=True)
    if (more := len(summary["metrics"]) - SHOWN) > 0:
        console.print(f"and {more} more metrics in {target / 'summary.json'}", soft_wrap=True)
    console.print("outcomes: " + ", ".join(f"{kind} {n}" for kind, n in summary["outcomes"].items()))
    if empty := summary.get("empty_answers"):
        console.print(f"{empty} of the answers are empty: scored as published, wrong in the strict column")
    if beyond := summary.get("beyond_positions"):
        console.print(f"{beyond} prompts reach beyond the positions that the model was trained for")
    if unread := summary.get("unreadable_answers"):
        console.print(f"{unread} of the answers cannot be read: wrong in the strict column")
    if silent := summary["outcomes"].get("unanswered"):
        console.print(f"{silent} replies hold no answer: not scored; `--max-new-tokens N` gives a model more tokens")
    if (data := summary["data"])["items"] < data["available"]:
        console.print(f"the first {data['items']:,} of {data['available']:,} items")
    if data["mini"]:
        console.print("miniature data: not comparable with published numbers")
    console.print(f"results: {target / 'results.jsonl'}", soft_wrap=True)


def show_all(summaries: "list[tuple[Summary, str]]", failed: dict[str, VlmError]) -> None:
    """Print one line for each evaluation (summary, folder name), and for each benchmark that failed."""
    from rich.table import Table

    from vlm.cli.show.screen import Screen, styled

    title = f"{len(summaries)} evaluations, {len(failed)} benchmarks failed"
    table = Table(title=title, title_justify="left")
    for column in ("benchmark", "variant", "metric", "score", "95 % interval", "scored / total", "not answered"):
        numbers = column in ("score", "95 % interval", "scored / total")
        table.add_column(column, justify="right" if numbers else "left", no_wrap=column in ("benchmark", "score"))
    for summary, variant in summaries:
        headline = summary["metrics"][0]
        lost = {kind: n for kind, n in summary["outcomes"].items() if kind not in ("ok", "truncated")}
        about = ", ".join(f"{kind} {n}" for kind, n in lost.items())
        table.add_row(summary["benchmark"], variant, headline["name"], *_numbers(headline), about)
    for name, error in failed.items():
        table.add_row(name, "", styled(f"failed: {error.found.splitlines()[0][:60]}", "red"))
    Screen().print(table)
    for name, error in failed.items():
        Screen(stderr=True).print(f"{name}: {error}", style="red", soft_wrap=True)


def number(value: float | None) -> str:
    """Format with one decimal; a dash for None."""
    return "–" if value is None else f"{value:.1f}"


def _numbers(metric: "MetricRow") -> tuple[str, str, str]:
    low_high = "" if metric["low"] is None else f"{metric['low']:.1f} – {metric['high']:.1f}"
    return number(metric["value"]), low_high, f"{metric['scored']} / {metric['total']}"
