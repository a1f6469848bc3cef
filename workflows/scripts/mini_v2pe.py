"""Make the tables and the plot of docs/results/v2pe.md from a finished run of workflows/config/mini-v2pe.yaml.

    python workflows/scripts/mini_v2pe.py runs/mini-v2pe docs/results

Writes tables.md and by-tokens.svg to the second folder. An interval is 95 %, by a bootstrap over documents: all seeds
of an arm answer the same ones.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean

from matplotlib import rcParams
from matplotlib.figure import Figure

from vlm.core.home import dataset, write_atomic
from vlm.core.sample.records import iter_jsonl
from vlm.eval.measures.stats import mean_interval

ARMS = {"arange": "plain positions", "random": "random strides"}
STRIDES = (1.0, 4.0, 16.0)
PLAIN = 16.0
"""At the number of an image's tokens, a stride is plain counting."""
OWN = {"arange": (PLAIN,), "random": STRIDES}
LENGTHS = (1, 2, 4, 8)
TRAINED = 128
TASKS = {"order": "Which digit comes first?", "text": "Which number is written?"}
LINES = (("arange", PLAIN, "#1f77b4", "-"), ("arange", 1.0, "#1f77b4", ":"))
LINES += (("random", PLAIN, "#d62728", "-"), ("random", 1.0, "#d62728", ":"))


@dataclass(frozen=True)
class Answer:
    """One reply. `found`: it is one of the hidden numbers; `right`: it is the one that is asked for."""

    arm: str
    seed: int
    stride: float
    task: str
    length: int
    document: str
    tokens: int
    position: float
    found: bool
    right: bool


Choice = tuple[str, float]
"""An arm and a stride of the test."""

DECISIONS: tuple[tuple[str, Choice, Choice], ...] = (
    ("trained on plain positions: stride 1 against plain", ("arange", 1.0), ("arange", PLAIN)),
    ("trained on random strides: stride 1 against plain", ("random", 1.0), ("random", PLAIN)),
    ("random strides tested at 1 against plain tested plain", ("random", 1.0), ("arange", PLAIN)),
)
"""What was to be decided before the run, at 4 and 8 times the length of training."""


def hidden(task: str, length: int) -> dict[str, set[str]]:
    """Return document -> the numbers that it hides, in words."""
    named = {}
    for split in ("train", "test"):
        for _, record in iter_jsonl(dataset() / "digits" / f"{split}.jsonl"):
            named[f"digits/{record['image']}"] = record["conversations"][1]["value"]
    group = f"{length}x" if task == "order" else f"{task}-{length}x"
    path = dataset() / "mini-v2pe" / group / "annotations" / "digit-haystack.jsonl"
    needles = {f"{group}/{r['id']}": (r["meta"]["needles"], r["answer"]) for _, r in iter_jsonl(path)}
    return {key: {named.get(needle, answer) for needle in names} for key, (names, answer) in needles.items()}


def read(run: Path) -> list[Answer]:
    """Read all replies of the run."""
    numbers = {k: words for task, n in product(TASKS, LENGTHS) for k, words in hidden(task, n).items()}
    answers = []
    for model in sorted((run / "eval").iterdir()):
        arm, seed = model.name.split("-s")
        for stride in STRIDES:
            for _, r in iter_jsonl(model / "mini-v2pe" / f"stride{stride:g}" / "results.jsonl"):
                *kind, length = r["group"].split("-")
                about = (arm, int(seed), stride, kind[0] if kind else "order", int(length.removesuffix("x")), r["id"])
                found = r["extracted"] in numbers[r["id"]]
                answers.append(Answer(*about, r["tokens"], r["max_position"], found, bool(r["score"])))
    return answers


def cell(answers: list[Answer], value: Callable[[Answer], bool] = lambda a: a.right) -> str:
    """Return a percentage with its interval."""
    values = [float(value(a)) for a in answers]
    low, high = mean_interval(values, [a.document for a in answers])
    return f"{100 * fmean(values):.0f}" + (f" ({100 * low:.0f} – {100 * high:.0f})" if low is not None else "")


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table, numbers to the right."""
    marks = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, marks, *rows])


def differences(answers: list[Answer], one: Choice, other: Choice) -> dict[int, tuple[list[float], list[str]]]:
    """Return seed -> differences of two choices on the same documents, and the documents."""
    right = {(a.arm, a.stride, a.seed, a.document): a.right for a in answers}
    seeds: dict[int, tuple[list[float], list[str]]] = {}
    for arm, stride, seed, document in right:
        if (arm, stride) == one:
            values, documents = seeds.setdefault(seed, ([], []))
            values.append(float(right[*one, seed, document]) - float(right[*other, seed, document]))
            documents.append(document)
    return seeds


def decided(answers: list[Answer]) -> list[list[str]]:
    """Return the rows of the table of decisions."""
    rows = []
    for task, length, (name, one, other) in product(TASKS, (4, 8), DECISIONS):
        seeds = differences([a for a in answers if (a.task, a.length) == (task, length)], one, other)
        values = [value for one_seed, _ in seeds.values() for value in one_seed]
        documents = [document for _, some in seeds.values() for document in some]
        # equal differences, say none at all, have no interval
        low, high = mean_interval(values, documents) if len(set(values)) > 1 else (None, None)
        shown = f" ({100 * low:+.0f} – {100 * high:+.0f})" if low is not None else ""
        each = ", ".join(f"{100 * fmean(one_seed):+.0f}" for one_seed, _ in seeds.values())
        yes = low is not None and (low > 0 or high < 0)
        points = f"{100 * fmean(values):+.0f}{shown}"
        rows.append([TASKS[task], f"{length}x", name, points, each, "yes" if yes else "no"])
    return rows


def tables(answers: list[Answer]) -> str:
    """Return all tables of the page."""
    seeds = sorted({a.seed for a in answers})
    lengths = [f"{length}x = {TRAINED * length}" for length in LENGTHS]
    parts = [
        "# V2PE in miniature: the tables\n\nMade by `make mini-v2pe`; what they say is in [v2pe.md](v2pe.md).\n",
        "## What was to be decided: differences in points on the same documents\n",
        table(["question", "length", "difference", "points", "each seed", "decided"], decided(answers)),
        "\n## In the trained length (1x), at the arm's own strides\n",
    ]
    rows = []
    for task, arm in product(TASKS, ARMS):
        mine = [a for a in answers if (a.arm, a.task, a.length) == (arm, task, 1) and a.stride in OWN[arm]]
        each = [f"{100 * fmean(a.right for a in mine if a.seed == seed):.0f}" for seed in seeds]
        rows.append([f"{TASKS[task]} {ARMS[arm]}", *each, cell(mine), cell(mine, lambda a: a.found)])
    parts.append(table(["question, arm", *(f"seed {s}" for s in seeds), "all: right", "one that is hidden"], rows))
    for (task, question), (title, value) in product(
        TASKS.items(), (("right", lambda a: a.right), ("one of the hidden", lambda a: a.found))
    ):
        if task == "text" and title != "right":
            continue  # it hides one number
        parts.append(f"\n## {question} Replies that are {title}; last position in brackets\n")
        rows = []
        for arm, stride in product(ARMS, STRIDES):
            here = [a for a in answers if (a.arm, a.task, a.stride) == (arm, task, stride)]
            by_length = [[a for a in here if a.length == n] for n in LENGTHS]
            row = [f"{cell(some, value)} [{fmean(a.position for a in some):.0f}]" for some in by_length]
            rows.append([f"{ARMS[arm]}, tested at {'plain positions' if stride == PLAIN else f'{stride:g}'}", *row])
        parts.append(table(["arm, stride", *lengths], rows))
    return "\n".join(parts) + "\n"


def plot(answers: list[Answer], path: Path) -> None:
    """Draw accuracy against tokens, one panel for each question, one line for each arm and stride."""
    sheet = Figure(figsize=(9.2, 3.6), layout="constrained")
    for axes, (task, question) in zip(sheet.subplots(1, len(TASKS), sharey=True), TASKS.items(), strict=True):
        for arm, stride, color, style in LINES:
            here = [a for a in answers if (a.arm, a.task, a.stride) == (arm, task, stride)]
            by_length = [[a for a in here if a.length == n] for n in LENGTHS]
            xs = [fmean(a.tokens for a in some) for some in by_length]
            label = f"{ARMS[arm]}, tested {'plain' if stride == PLAIN else f'at {stride:g}'}"
            ys = [100 * fmean(a.right for a in some) for some in by_length]
            axes.plot(xs, ys, marker="o", markersize=3, label=label, color=color, linestyle=style)
            for x, some in zip(xs, by_length, strict=True):
                low, high = mean_interval([float(a.right) for a in some], [a.document for a in some])
                if low is not None:
                    axes.vlines(x, 100 * low, 100 * high, color=color, alpha=0.4)
        axes.set(title=question, xlabel="tokens of the prompt", xscale="log", ylim=(-3, 103))
        axes.set_xscale("log", base=2)
        axes.axhline(50 if task == "order" else 10, color="grey", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, frameon=False)
    sheet.axes[0].set_ylabel("right, %")
    rcParams["svg.hashsalt"] = path.name  # the same replies give the same bytes
    sheet.savefig(path, metadata={"Date": None})


def main(run: Path, out: Path) -> None:
    """Write tables and plot; read everything first, so that nothing is written when an evaluation is missing."""
    answers = read(run)
    expected = {(arm, s, stride) for arm, s, stride in product(ARMS, {a.seed for a in answers}, STRIDES)}
    if missing := expected - {(a.arm, a.seed, a.stride) for a in answers}:
        sys.exit(f"evaluations are missing: {sorted(missing)}")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "tables.md", tables(answers))
    plot(answers, out / "by-tokens.svg")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
