"""Make the tables and plots of docs/results/v2pe.md from a finished run of workflows/config/mini-v2pe.yaml.

    python workflows/scripts/mini_v2pe.py runs/mini-v2pe docs/results

Writes tables.md, by-tokens.svg and by-position.svg to the second folder. An interval is 95 %, by a bootstrap over
documents: all seeds of an arm answer the same ones.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean

from matplotlib import rcParams
from matplotlib.figure import Figure

from vlm.core.home import dataset, write_atomic
from vlm.core.sample.positions import STRIDES as PUBLISHED
from vlm.core.sample.records import iter_jsonl
from vlm.eval.measures.stats import mean_interval

ARMS = {"arange": "plain positions", "fixed": "one stride (1)", "random": "random strides"}
STRIDES = tuple(stride * 16 / 256 for stride in PUBLISHED)
"""The published nine for a tile of 256 tokens, for our images of 16."""
OWN = {"arange": (16.0,), "fixed": (1.0,), "random": STRIDES}
"""At 16, the tokens of an image, a stride is plain counting."""
LENGTHS = (1, 2, 4, 8, 16)
TRAINED = 128
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e")


@dataclass(frozen=True)
class Answer:
    """One reply. `found`: it is one of the two hidden digits; `right`: it is the first of them."""

    arm: str
    seed: int
    stride: float
    length: int
    document: str
    tokens: int
    position: float
    found: bool
    right: bool


def digits_of(length: int) -> dict[str, set[str]]:
    """Return document -> the two digits that it hides."""
    named = {}
    for split in ("train", "test"):
        for _, record in iter_jsonl(dataset() / "digits" / f"{split}.jsonl"):
            named[f"digits/{record['image']}"] = record["conversations"][1]["value"]
    path = dataset() / "mini-v2pe" / f"{length}x" / "annotations" / "digit-haystack.jsonl"
    return {f"{length}x/{r['id']}": {named[name] for name in r["meta"]["needles"]} for _, r in iter_jsonl(path)}


def read(run: Path) -> list[Answer]:
    """Read all replies of the run."""
    hidden = {key: digits for length in LENGTHS for key, digits in digits_of(length).items()}
    answers = []
    for model in sorted((run / "eval").iterdir()):
        arm, seed = model.name.split("-s")
        for stride in STRIDES:
            for _, r in iter_jsonl(model / "mini-v2pe" / f"stride{stride:g}" / "results.jsonl"):
                found, length = r["extracted"] in hidden[r["id"]], int(r["group"].removesuffix("x"))
                about = (arm, int(seed), stride, length, r["id"], r["tokens"], r["max_position"])
                answers.append(Answer(*about, found, bool(r["score"])))
    return answers


def cell(answers: list[Answer], value: Callable[[Answer], bool] = lambda a: a.right, interval: bool = True) -> str:
    """Return a percentage with its interval."""
    values = [float(value(a)) for a in answers]
    text = f"{100 * fmean(values):.0f}"
    low, high = mean_interval(values, [a.document for a in answers])
    return f"{text} ({100 * low:.0f} – {100 * high:.0f})" if interval and low is not None else text


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table, numbers to the right."""
    marks = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, marks, *rows])


def own(answers: list[Answer], arm: str) -> list[Answer]:
    """Return the replies of an arm at the strides that it was trained with."""
    return [a for a in answers if a.arm == arm and a.stride in OWN[arm]]


def tables(answers: list[Answer]) -> str:
    """Return all tables of the page."""
    seeds = sorted({a.seed for a in answers})
    lengths = [f"{length}x = {TRAINED * length}" for length in LENGTHS]
    parts = [
        "# V2PE in miniature: the tables\n\nMade by `make mini-v2pe`; what they say is in [v2pe.md](v2pe.md).\n",
        "## In the trained length (1x), at the arm's own strides\n",
    ]
    rows = []
    for arm in ARMS:
        mine = [a for a in own(answers, arm) if a.length == 1]
        each = [cell([a for a in mine if a.seed == s], interval=False) for s in seeds]
        rows.append([ARMS[arm], *each, cell(mine), cell(mine, lambda a: a.found)])
    parts.append(table(["arm", *(f"seed {s}" for s in seeds), "all: first digit", "one of the two"], rows))

    for title, value in (("The first digit", lambda a: a.right), ("One of the two digits", lambda a: a.found)):
        parts.append(f"\n## {title}, against the number of tokens, at the arm's own strides\n")
        rows = [
            [ARMS[arm], *(cell([a for a in own(answers, arm) if a.length == n], value) for n in LENGTHS)]
            for arm in ARMS
        ]
        parts.append(table(["arm", *lengths], rows))

    for arm in ARMS:
        parts.append(f"\n## {ARMS[arm]}: every stride, last position in brackets\n")
        rows = []
        for stride in STRIDES:
            row = [f"{stride:g}"]
            for n in LENGTHS:
                here = [a for a in answers if (a.arm, a.stride, a.length) == (arm, stride, n)]
                row.append(f"{cell(here, interval=False)} [{fmean(a.position for a in here):.0f}]")
            rows.append(row)
        parts.append(table(["stride", *lengths], rows))

    parts.append("\n## Against the last position: all lengths beyond the trained one, all strides\n")
    edges = (0, 128, 256, 512, 1024, 4096)
    bins = list(pairwise(edges))
    rows = []
    for arm in ARMS:
        row = [ARMS[arm]]
        for low, high in bins:
            here = [a for a in answers if a.arm == arm and a.length > 1 and low <= a.position < high]
            row.append(cell(here) if here else "")
        rows.append(row)
    parts.append(table(["arm", *(f"{low} to {high}" for low, high in bins)], rows))

    parts.append("\n## The same documents at stride 1 and at stride 16 (plain): difference in points\n")
    rows = []
    for arm in ARMS:
        row = [ARMS[arm]]
        for n in LENGTHS:
            right = {(a.seed, a.document, a.stride): a.right for a in answers if (a.arm, a.length) == (arm, n)}
            pairs = [(key[1], right[(*key[:2], 1.0)] - right[(*key[:2], 16.0)]) for key in right if key[2] == 1.0]
            low, high = mean_interval([d for _, d in pairs], [document for document, _ in pairs])
            shown = f" ({100 * low:+.0f} – {100 * high:+.0f})" if low is not None else ""
            row.append(f"{100 * fmean(d for _, d in pairs):+.0f}{shown}")
        rows.append(row)
    parts.append(table(["arm", *lengths], rows))
    return "\n".join(parts) + "\n"


def figure(path: Path, draw: Callable, titles: list[str]) -> None:
    """Draw one panel for each title, by `draw(axes, number)`."""
    sheet = Figure(figsize=(4.2 * len(titles), 3.4), layout="constrained")
    for number, (axes, title) in enumerate(zip(sheet.subplots(1, len(titles), sharey=True), titles, strict=True)):
        draw(axes, number)
        axes.set_title(title, fontsize=10)
        axes.set_xscale("log", base=2)
        axes.set_ylim(-3, 103)
        axes.grid(alpha=0.3)
        axes.axhline(50, color="grey", linewidth=0.8, linestyle=":")
        axes.legend(fontsize=7, frameon=False)
    sheet.axes[0].set_ylabel("first digit named, %")
    rcParams["svg.hashsalt"] = path.name  # the same replies give the same bytes
    sheet.savefig(path, metadata={"Date": None})


def plots(answers: list[Answer], out: Path) -> None:
    """Plot accuracy against tokens for each arm, and against the last position with a line for each length."""

    def line(axes, here: list[list[Answer]], x: Callable[[Answer], float], label: str, color: str) -> None:
        xs = [fmean(x(a) for a in point) for point in here]
        ys = [100 * fmean(a.right for a in point) for point in here]
        axes.plot(xs, ys, marker="o", markersize=3, label=label, color=color)
        for at, point in zip(xs, here, strict=True):
            low, high = mean_interval([float(a.right) for a in point], [a.document for a in point])
            if low is not None:
                axes.vlines(at, 100 * low, 100 * high, color=color, alpha=0.4)

    def by_tokens(axes, number: int) -> None:
        for (arm, name), color in zip(ARMS.items(), COLORS, strict=False):
            mine = [a for a in answers if a.arm == arm and (number or a.stride in OWN[arm])]
            mine = [a for a in mine if not number or a.stride == STRIDES[0]]
            line(axes, [[a for a in mine if a.length == n] for n in LENGTHS], lambda a: a.tokens, name, color)
        axes.set_xlabel("tokens of the prompt")

    def by_position(axes, number: int) -> None:
        arm = list(ARMS)[number]
        for n, color in zip(LENGTHS, COLORS, strict=True):
            points = [[a for a in answers if (a.arm, a.length, a.stride) == (arm, n, s)] for s in STRIDES]
            line(axes, points, lambda a: a.position, f"{n}x = {n * TRAINED} tokens", color)
        axes.set_xlabel("last position of the prompt")

    figure(out / "by-tokens.svg", by_tokens, ["the arm's own strides", f"stride {STRIDES[0]:g} in the test"])
    figure(out / "by-position.svg", by_position, list(ARMS.values()))


def main(run: Path, out: Path) -> None:
    """Write tables and plots; read everything first, so that nothing is written when an evaluation is missing."""
    answers = read(run)
    expected = {(arm, s, stride) for arm, s, stride in product(ARMS, {a.seed for a in answers}, STRIDES)}
    if missing := expected - {(a.arm, a.seed, a.stride) for a in answers}:
        sys.exit(f"evaluations are missing: {sorted(missing)}")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "tables.md", tables(answers))
    plots(answers, out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
