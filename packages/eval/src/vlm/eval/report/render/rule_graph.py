"""A rule graph as a small SVG drawing: layers from top to bottom."""

from collections import defaultdict
from html import escape

from vlm.eval.report.gather.workflow import RuleGraph

BOX, GAP, LINE, MARGIN = 26, 22, 34, 10
"""Height of a rule's box, gap between boxes of a layer, gap between layers, margin, in px."""

BEND = 90
"""How far a line that passes a layer swings out, in px."""


def layers(graph: RuleGraph) -> list[list[str]]:
    """Return the nodes by their longest path from a rule that needs nothing: each node is below all that it needs.

    A cycle, which no workflow has, is cut where it is found.
    """
    needs: dict[str, list[str]] = defaultdict(list)
    for before, after in graph.edges:
        needs[after].append(before)
    depth: dict[str, int] = {}

    def depth_of(node: str, above: tuple[str, ...]) -> int:
        if node not in depth:
            below = [depth_of(n, (*above, node)) + 1 for n in needs[node] if n not in (*above, node)]
            depth[node] = max(below, default=0)
        return depth[node]

    result: list[list[str]] = [[] for _ in range(max((depth_of(node, ()) for node in graph.rules), default=-1) + 1)]
    for node in sorted(graph.rules, key=lambda node: graph.rules[node]):
        result[depth[node]].append(node)
    return result


def direct(graph: RuleGraph) -> list[tuple[str, str]]:
    """Return the edges without those that a longer path implies: of a-b, b-c and a-c, the last is left out."""
    following: dict[str, set[str]] = defaultdict(set)
    for before, after in graph.edges:
        following[before] |= {after} - {before}
    beyond = {node: reachable(following, following[node]) for node in graph.rules}
    return [(a, b) for a, b in graph.edges if a == b or b not in beyond[a]]


def reachable(following: dict[str, set[str]], start: set[str]) -> set[str]:
    """Return all nodes that come after those of `start`."""
    found: set[str] = set()
    todo = list(start)
    while todo:
        new = following.get(todo.pop(), set()) - found
        found |= new
        todo += new
    return found


def draw_graph(graph: RuleGraph) -> str:
    """Draw the rule graph as SVG, with a line from each rule down to those that need it directly."""
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
        if before == after:  # a job of the rule needs another job of it, as a later training stage needs an earlier one
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
