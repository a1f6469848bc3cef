"""Bar, line and pie charts of real tables with questions that have one short answer."""

import random
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vlm.core.errors import DataError
from vlm.core.synth.sets.chart_tables import Numbers, comparisons, series
from vlm.core.synth.vqa_records import NUMBER_WORDS, vqa_record, write_jsonl

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vlm.core.organize.organize_set import OrganizeOptions


Kind = Literal["bar", "line", "pie"]
TRAIN, TEST = 250, 50
SIDE = 336
"""Pixels."""

COLORS = {
    "red": "#d62728",
    "blue": "#1f5fd0",
    "green": "#2ca02c",
    "orange": "#ff8c00",
    "purple": "#8040b0",
    "brown": "#8c564b",
    "pink": "#f48fb1",
    "black": "#222222",
}
CLEAR = 0.05
"""A highest or lowest value is asked for when it differs by this part of the highest from the next one."""


def organize_charts(sources: dict[str, Path], out: Path, options: "OrganizeOptions") -> None:
    """Write images/000.png … (336x336), train.jsonl and test.jsonl; one record a chart, all its questions as turns.

    Raises:
        DataError: The tables give too few charts.
    """
    import matplotlib.style

    rng = random.Random(f"charts/{options.seed}")
    compared, lines = comparisons(sources["vega-datasets"]), series(sources["vega-datasets"])
    plans: list[tuple[Kind, Numbers]] = [("bar", n) for n in compared] + [("line", n) for n in lines]
    plans += [("pie", n) for n in compared if n.share and min(n.values) > CLEAR * sum(n.values)]
    if len(plans) < TRAIN + TEST:
        raise DataError(f"the tables give {len(plans)} charts", expected=f"at least {TRAIN + TEST}")
    rng.shuffle(plans)
    (out / "images").mkdir()
    records = []
    with matplotlib.style.context("default"):  # a person's own matplotlib settings must not change the pictures
        for i, (kind, numbers) in enumerate(plans[: TRAIN + TEST]):
            colors = rng.sample(list(COLORS), len(numbers.values) if kind == "pie" else 1)
            _draw(kind, numbers, colors).savefig(out / "images" / f"{i:03}.png", metadata={"Software": None})
            records.append(vqa_record(f"charts/{i:03}", f"images/{i:03}.png", questions(kind, numbers, colors)))
    write_jsonl(out / "train.jsonl", records[:TRAIN])
    write_jsonl(out / "test.jsonl", records[TRAIN:])


def questions(kind: Kind, numbers: Numbers, colors: list[str]) -> list[tuple[str, str]]:
    """Return (question, short answer) turns; what the picture leaves in doubt is not asked."""
    turns = [("What kind of chart is this?", f"{kind} chart")]
    if kind == "line":
        turns.append(("What colour is the line?", colors[0]))
        first, last = numbers.values[0], numbers.values[-1]
        if abs(last - first) > CLEAR * (max(numbers.values) - min(numbers.values)):
            turns.append(("Does the line end higher than it starts?", "yes" if last > first else "no"))
        return turns
    part, most, least = ("bar", "highest", "lowest") if kind == "bar" else ("slice", "largest", "smallest")
    turns.append((f"How many {part}s are there?", NUMBER_WORDS[len(numbers.values)]))
    if kind == "bar":
        turns.append(("What colour are the bars?", colors[0]))
    order = sorted(range(len(numbers.values)), key=numbers.values.__getitem__)
    for word, best, next_best in ((most, order[-1], order[-2]), (least, order[0], order[1])):
        if abs(numbers.values[best] - numbers.values[next_best]) > CLEAR * max(numbers.values):
            turns.append((f"Which {part} is the {word}?", numbers.labels[best]))
            if kind == "pie":
                turns.append((f"What colour is the {word} slice?", colors[best]))
    return turns


def _draw(kind: Kind, numbers: Numbers, colors: list[str]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIDE / 100, SIDE / 100), dpi=100)
    paint = [COLORS[name] for name in colors]
    axes = figure.add_axes((0.2, 0.24, 0.76, 0.64) if kind != "pie" else (0.16, 0.06, 0.68, 0.78))
    axes.set_title(numbers.title, fontsize=10, y=1.0)  # a fixed height saves a quarter of the time
    if kind == "pie":
        axes.pie(numbers.values, labels=numbers.labels, colors=paint, textprops={"fontsize": 8})
        return figure
    places = range(len(numbers.values))
    if kind == "bar":
        axes.bar(places, numbers.values, color=paint[0])
        axes.set_xticks(places, numbers.labels, rotation=30, ha="right", fontsize=8)
    else:
        axes.plot(places, numbers.values, color=paint[0], linewidth=2)
        ticks = [0, len(numbers.values) // 2, len(numbers.values) - 1]
        axes.set_xticks(ticks, [numbers.labels[t] for t in ticks], fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    return figure
