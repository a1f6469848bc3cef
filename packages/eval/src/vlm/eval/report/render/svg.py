"""Small SVG charts without a plotting library: sharp at any size, light and dark by CSS variables, readable as text."""

import math
from collections.abc import Sequence
from html import escape

from vlm.eval.report.render.charts import Chart

WIDTH, HEIGHT = 440, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 12, 40
STOPS = ((0xDC, 0x14, 0x3C), (0xFF, 0xD7, 0x00), (0x3C, 0xB3, 0x71))
"""Crimson, gold, seagreen: the published heat-map colors for 0, 0.5 and 1."""


def line_chart(chart: Chart) -> str:
    """Draw a chart as SVG; "" without a point."""
    series, log2 = chart.series, chart.log2
    xs = sorted({p[0] for s in series for p in s.points})
    ys = [y for s in series for p in s.points for y in p[1:]]
    if not xs:
        return ""
    x_ticks = log2_ticks(xs) if log2 else ticks(xs[0], xs[-1])
    low, high = chart.y_range or (min(ys), max(ys))
    y_ticks = ticks(low, high)
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])

    def scale(x: float) -> float:
        return math.log2(1 + x) if log2 else x

    x0, x1 = scale(xs[0]), scale(xs[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        across = (scale(x) - x0) / (x1 - x0) if x1 > x0 else 0.5
        up = (y - low) / (high - low) if high > low else 0.5
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    title = f"{chart.y_label} against {chart.x_label}: " + ", ".join(s.name for s in series)
    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick, name in zip(y_ticks, distinct(y_ticks), strict=True):
        y = at(xs[0], tick)[1]
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
    for tick in x_ticks:
        if xs[0] <= tick <= xs[-1]:
            x = at(tick, low)[0]
            out.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{short(tick)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    out.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(chart.x_label)}</text>')
    for number, s in enumerate(series):
        out.append(f'<g class="c{number % 6}"><title>{escape(s.name)}</title>')
        points = [at(p[0], p[1]) for p in s.points]
        out.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
        for p, (x, y) in zip(s.points, points, strict=True):
            if len(p) == 4:
                (_, y_low), (_, y_high) = at(p[0], p[2]), at(p[0], p[3])
                out.append(f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{y_low:.1f}" y2="{y_high:.1f}"/>')
            if chart.markers:
                tip = f"{escape(s.name)}: {short(p[1])} at {short(p[0])}"
                out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2"><title>{tip}</title></circle>')
        out.append("</g>")
    return "".join(out) + "</svg>"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers (1, 2, 2.5, 5 times a power of ten) from at or below `low` to at or above `high`.

    >>> ticks(0, 100)
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def short(value: float, digits: int = 3) -> str:
    """Return a number in at most about five characters: 0.25, 17.4, 1.5k, 256k, 2M, 2e-5.

    Args:
        value: The number.
        digits: Significant digits.
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.{digits}g}{unit}"
    if 0 < abs(value) < 1e-3:
        digits_of, _, power = f"{value:.{digits - 1}e}".partition("e")
        return f"{float(digits_of):g}e{int(power)}"
    return f"{value:.{digits}g}"


def distinct(values: Sequence[float]) -> list[str]:
    """Return the labels of an axis, with as many digits as it takes to tell them apart.

    >>> distinct([1200.2, 1200.4])
    ['1.2002k', '1.2004k']
    """
    for digits in range(3, 8):
        names = [short(value, digits) for value in values]
        if len(set(names)) == len(names):
            break
    return names


def log2_ticks(values: Sequence[float], most: int = 9) -> list[float]:
    """Return those of sorted values that are far enough apart on an axis of log2(1 + x) for their labels.

    >>> log2_ticks([1, 16, 64, 256])
    [1, 16, 64, 256]
    """
    span = math.log2(1 + values[-1]) - math.log2(1 + values[0])
    kept = [values[0]]
    for value in values[1:]:
        if math.log2(1 + value) - math.log2(1 + kept[-1]) >= span / most:
            kept.append(value)
    return kept


def color(score: float) -> str:
    """Return the background of a heat-map cell: linear from crimson (0) over gold (0.5) to seagreen (1).

    >>> color(0), color(0.5), color(1)
    ('#dc143c', '#ffd700', '#3cb371')
    """
    at = min(max(score, 0.0), 1.0) * 2
    lower = min(int(at), 1)
    mix = [round(a + (b - a) * (at - lower)) for a, b in zip(STOPS[lower], STOPS[lower + 1], strict=True)]
    return "#" + "".join(f"{c:02x}" for c in mix)


def ink(score: float) -> str:
    """Return a text color that is readable on `color(score)`."""
    return "#fff" if score < 0.15 else "#1a1a1a"
