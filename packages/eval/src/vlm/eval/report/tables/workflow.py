"""Times and memory of the workflow's rules, and its rule graph as a small drawing."""

import base64
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from vlm.eval.report.gather.runs import Graph, Job

BOX, GAP, LINE, MARGIN, BEND = 26, 22, 34, 10, 90
"""Height of a rule's box, gap between boxes of a layer, gap between layers, margin, in px, and how far a line that
passes a layer swings out."""


def rules(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Per run and rule: jobs, wall seconds in all and of the longest job, CPU seconds, largest memory in MB."""
    groups: dict[tuple[str, str], list[Job]] = defaultdict(list)
    for job in jobs:
        groups[job.run, job.rule].append(job)
    result = []
    for (run, rule), part in groups.items():
        seconds = [job.seconds for job in part if job.seconds is not None]
        cpu = [job.cpu_seconds for job in part if job.cpu_seconds is not None]
        memory = [job.max_rss_mb for job in part if job.max_rss_mb is not None]
        longest = max(part, key=lambda job: job.seconds or 0)
        result.append(
            {
                "run": run,
                "rule": rule,
                "jobs": len(part),
                "seconds": sum(seconds) if seconds else None,
                "longest": max(seconds, default=None),
                "longest_job": longest.name,
                "cpu_seconds": sum(cpu) if cpu else None,
                "max_rss_mb": max(memory, default=None),
            }
        )
    return sorted(result, key=lambda row: (row["run"], -(row["seconds"] or 0), row["rule"]))


def layers(graph: Graph) -> list[list[str]]:
    """Nodes by their longest way from a rule that needs nothing; a node stands below all that it needs.

    A cycle, which no workflow has, is cut where it is met.
    """
    needs: dict[str, list[str]] = defaultdict(list)
    for before, after in graph.edges:
        needs[after].append(before)
    depth: dict[str, int] = {}

    def of(node: str, above: tuple[str, ...]) -> int:
        if node not in depth:
            below = [of(n, (*above, node)) + 1 for n in needs[node] if n not in (*above, node)]
            depth[node] = max(below, default=0)
        return depth[node]

    result: list[list[str]] = [[] for _ in range(max((of(node, ()) for node in graph.rules), default=-1) + 1)]
    for node in sorted(graph.rules, key=lambda node: graph.rules[node]):
        result[depth[node]].append(node)
    return result


def direct(graph: Graph) -> list[tuple[str, str]]:
    """The edges without those that a longer way implies: a needs b and c, b needs c: then a to c says nothing new."""
    following: dict[str, set[str]] = defaultdict(set)
    for before, after in graph.edges:
        following[before] |= {after} - {before}
    beyond = {node: reachable(following, following[node]) for node in graph.rules}
    return [(a, b) for a, b in graph.edges if a == b or b not in beyond[a]]


def reachable(following: dict[str, set[str]], start: set[str]) -> set[str]:
    """All nodes that come after those of `start`."""
    found: set[str] = set()
    todo = list(start)
    while todo:
        new = following.get(todo.pop(), set()) - found
        found |= new
        todo += new
    return found


def drawing(graph: Graph) -> str:
    """The rule graph as SVG: layers from top to bottom, a line from each rule down to those that need it directly."""
    rows, edges = layers(graph), direct(graph)
    below = {node: number for number, row in enumerate(rows) for node in row}
    wide = {node: 16 + 7.2 * len(name) for node, name in graph.rules.items()}
    widths = [sum(wide[node] for node in row) + GAP * (len(row) - 1) for row in rows]
    swings = any(a == b or below[b] - below[a] > 1 for a, b in edges)
    width = max(widths) + 2 * MARGIN + (BEND if swings else 0)
    height = len(rows) * BOX + (len(rows) - 1) * LINE + 2 * MARGIN
    at: dict[str, tuple[float, float]] = {}
    for number, (row, used) in enumerate(zip(rows, widths, strict=True)):
        left = (max(widths) - used) / 2 + MARGIN
        for node in row:
            at[node] = (left + wide[node] / 2, MARGIN + number * (BOX + LINE))
            left += wide[node] + GAP
    words = ", ".join(f"{graph.rules[a]} before {graph.rules[b]}" for a, b in edges)
    size = f'viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}"'
    out = [f'<svg class="graph" {size} role="img" aria-label="Rule graph: {escape(words)}">']
    for before, after in edges:
        (x0, y0), (x1, y1) = at[before], at[after]
        if before == after:  # one job of a rule needs another one of it, as a later stage of training an earlier one
            x0 += wide[before] / 2
            out.append(f'<path d="M{x0:.1f},{y0 + 8} c22,-12 22,22 0,10"/>')
            continue
        y0, bend = y0 + BOX, BEND if below[after] - below[before] > 1 else 0
        curve = f"{x0 + bend:.1f},{y0 + LINE / 2} {x1 + bend:.1f},{y1 - LINE / 2}"
        out.append(f'<path d="M{x0:.1f},{y0} C{curve} {x1:.1f},{y1}"/>')
    for node, name in graph.rules.items():
        x, y = at[node]
        out.append(f'<rect x="{x - wide[node] / 2:.1f}" y="{y}" width="{wide[node]:.1f}" height="{BOX}" rx="6"/>')
        out.append(f'<text x="{x:.1f}" y="{y + 17}" text-anchor="middle">{escape(name)}</text>')
    return "".join(out) + "</svg>"


def data_url(path: Path) -> str:
    """A drawing as an image inside the page: as an image it can neither run scripts nor fetch anything."""
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
