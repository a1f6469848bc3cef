"""From rows of results.jsonl to metrics: plain accuracies and the published aggregates, each with its interval."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from vlm.eval.benchmark import Benchmark
from vlm.eval.measures.bleu import bleu4
from vlm.eval.measures.rows import ANSWERED, Answers, Metric, Row, bounds_of, by_group, plain
from vlm.eval.measures.stats import Interval, ratio, replicates, wilson
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.judged import mmvet
from vlm.eval.scorers.longvqa import TASKS, bleu_columns
from vlm.eval.scorers.mmniah import DEPTHS, EDGES, cells
from vlm.eval.scorers.sets import mme, mmmu, whole_sets


def mean(benchmark: Benchmark, rows: Sequence[Row], compat: Compat) -> list[Metric]:
    """Mean score over items and per group."""
    return plain(rows, compat, benchmark.options.get("metric", "accuracy"))


def gqa(benchmark: Benchmark, rows: Sequence[Row], compat: Compat) -> list[Metric]:
    """Accuracy of all questions, of binary and of open ones (structural type `query`). Source: 4.5."""
    kinds: dict[str, list[Row]] = {"binary": [], "open": []}
    for row in rows:
        kinds["open" if row["meta"]["structural"] == "query" else "binary"].append(row)
    return [*plain(rows, compat), *[Answers(part, compat).mean(kind) for kind, part in kinds.items()]]


def not_scored(benchmark: Benchmark, rows: Sequence[Row], compat: Compat) -> list[Metric]:
    """No number: the answers are with a server. The note says which file to submit where."""
    note = "not scored"
    if about := benchmark.submission:
        note += f": submit {about.file} to {about.server}"
    empty = sum(row["outcome"] not in ANSWERED for row in rows)
    note += f"; {empty} of {len(rows)} questions have no answer and are empty in it" if empty else ""
    return [Answers(rows, compat).metric(benchmark.options.get("metric", "accuracy"), None, note=note)]


def group_mean(benchmark: Benchmark, rows: Sequence[Row], compat: Compat) -> list[Metric]:
    """ChartQA: the mean of the groups' means (equal weight), each group, and the plain accuracy. Source: 4.3."""
    name, answers = benchmark.options["metric"], Answers(rows, compat)
    groups = list(benchmark.options["splits"])
    each = [Answers([row for row in rows if row["group"] == group], compat).mean(f"{name}/{group}") for group in groups]
    if any(metric.value is None for metric in each):
        missing = ", ".join(g for g, metric in zip(groups, each, strict=True) if metric.value is None)
        return [answers.metric(name, None, note=f"no scored item in {missing}"), *each, *plain(rows, compat)[:1]]
    member = np.array([[row["group"] == group for group in groups] for row in answers.rows], dtype=float)
    columns = np.concatenate([member * answers.values[:, None], member], axis=1)

    def statistic(totals: np.ndarray) -> np.ndarray:
        return ratio(np.stack(np.split(totals, 2, axis=-1), axis=-1)).mean(axis=-1)

    value = float(np.mean([metric.value for metric in each])) / 100
    bounds = bounds_of(answers.bootstrap(columns, statistic, seed=0), value, len(set(answers.clusters)))
    return [answers.metric(name, value, bounds), *each, *plain(rows, compat)[:1]]


def _pope_counts(answers: Answers) -> np.ndarray:
    """[items, 4] TP, FP, TN, FN as 0/1. What the reply said follows from label and score: a reply that is neither yes
    nor no is wrong whatever the label."""
    right = answers.values == 1.0
    yes = np.array([row["gold"] == "yes" for row in answers.rows], dtype=bool)
    return np.stack([right & yes, ~right & ~yes, right & ~yes, ~right & yes], axis=1).astype(float)


def _f1(totals: np.ndarray) -> np.ndarray:
    """[..., 4] -> [...]; NaN without positives in labels and replies."""
    tp, fp, fn = totals[..., 0], totals[..., 1], totals[..., 3]
    size = 2 * tp + fp + fn
    return np.divide(2 * tp, size, out=np.full(size.shape, np.nan), where=size > 0)


def pope(benchmark: Benchmark, rows: Sequence[Row], compat: Compat) -> list[Metric]:
    """Mean F1 of the categories, then F1, accuracy, precision, recall and yes ratio of each. Source: 6.1.

    A category in which a published ratio divides by zero has no F1 in upstream mode, as published.
    """
    groups = list(benchmark.options["categories"])
    answers = Answers(rows, compat)
    each: list[Metric] = []
    f1s: list[float | None] = []
    for group in groups:
        part = Answers([row for row in rows if row["group"] == group], compat)
        counts = _pope_counts(part) if part.rows else np.zeros((0, 4))
        tp, fp, tn, fn = counts.sum(axis=0)
        note = "" if tp else f"no true positive among {len(part.rows)} answers: the published F1 divides by zero"
        f1 = float(_f1(counts.sum(axis=0))) if tp or compat == "fixed" else float("nan")
        f1s.append(None if math.isnan(f1) else f1)
        bounds: Interval = (None, None)
        if part.rows and not math.isnan(f1):
            bounds = bounds_of(part.bootstrap(counts, _f1, seed=0), f1, len(set(part.clusters)))
        each.append(part.metric(f"F1/{group}", f1s[-1], bounds, note if f1s[-1] is None else ""))
        each.append(part.mean(f"accuracy/{group}"))
        for name, top, bottom in (
            ("precision", tp, tp + fp),
            ("recall", tp, tp + fn),
            ("yes ratio", tp + fp, tp + fp + tn + fn),
        ):
            each.append(part.metric(f"{name}/{group}", top / bottom if bottom else None, wilson(top, bottom)))
    missing = [group for group, f1 in zip(groups, f1s, strict=True) if f1 is None]
    if missing:
        headline = answers.metric("F1", None, note=f"no F1 for {', '.join(missing)}")
    else:
        counts = _pope_counts(answers)
        columns = np.concatenate([counts * [[row["group"] == g] for row in answers.rows] for g in groups], axis=1)

        def statistic(totals: np.ndarray) -> np.ndarray:
            return _f1(totals.reshape(-1, len(groups), 4)).mean(axis=-1)

        value = float(np.mean([f1 for f1 in f1s if f1 is not None]))
        bounds = bounds_of(answers.bootstrap(columns, statistic, seed=0), value, len(set(answers.clusters)))
        headline = answers.metric("F1", value, bounds)
    return [headline, *plain(rows, compat)[:1], *each]


class Parts:
    """Independent parts (sets, tasks) whose values are averaged again and again: value and replicates of each."""

    def __init__(self, rows: Sequence[Row], compat: Compat) -> None:
        self.rows, self.compat = rows, compat
        self.known: dict[str, tuple[float, np.ndarray]] = {}

    def average(self, name: str, parts: Sequence[str]) -> Metric:
        """Mean over `parts`; with note and without value when one is missing. The result is a part itself."""
        answers = Answers(self.rows, self.compat)
        missing = [part for part in parts if part not in self.known]
        if missing:
            return answers.metric(name, None, note=f"{len(missing)} missing: {', '.join(missing[:5])}")
        value = float(np.mean([self.known[part][0] for part in parts]))
        samples = np.mean([self.known[part][1] for part in parts], axis=0)
        self.known[name] = (value, samples)
        return answers.metric(name, value, bounds_of(samples, value, len(set(answers.clusters))))


def milebench(benchmark: Benchmark, rows: Sequence[Row], compat: Compat) -> list[Metric]:
    """T, S and NI by both readings (mean over sets, mean over tasks), their average, and every set. Source: 10.1."""
    tasks: dict[str, list[str]] = benchmark.options["tasks"]
    sets = {letter: [s for task, names in tasks.items() if task.startswith(letter) for s in names] for letter in "TSN"}
    groups, parts, each = by_group(rows), Parts(rows, compat), []
    for number, group in enumerate(name for names in tasks.values() for name in names):
        answers = Answers(groups.get(group, []), compat)
        each.append(answers.mean(group))
        if answers.rows:
            columns = np.stack([answers.values, np.ones_like(answers.values)], axis=1)
            parts.known[group] = (float(answers.values.mean()), answers.bootstrap(columns, ratio, seed=number))
    by_set = [parts.average(f"{letter} (set mean)", sets[letter]) for letter in "TS"] + [parts.average("NI", sets["N"])]
    average = parts.average("average", ["T (set mean)", "S (set mean)", "NI"])
    task_means = [parts.average(task, names) for task, names in tasks.items() if task[0] in "TS"]
    by_task = [parts.average(f"{letter} (task mean)", [t for t in tasks if t.startswith(letter)]) for letter in "TS"]
    realistic = parts.average("realistic (task mean)", [task for task in tasks if task[0] in "TS"])
    return [average, *by_set, *by_task, realistic, *plain(rows, compat)[:1], *task_means, *each]


def mmniah(benchmark: Benchmark, rows: Sequence[Row], compat: Compat) -> list[Metric]:
    """Column means per task, image, text and average, and beside each task its plain accuracy. Source: 11.4."""
    tasks: list[str] = benchmark.options["tasks"]
    groups, parts = by_group(rows), Parts(rows, compat)
    columns, each = [], []
    for number, task in enumerate(tasks):
        answers = Answers(groups.get(task, []), compat)
        each.append(answers.mean(f"{task} (plain accuracy)"))
        found = _column_mean(answers, compat, seed=1000 * number)
        if found is None:
            columns.append(answers.metric(task, None, note=f"no scored sample of {EDGES[0]} tokens or more"))
            continue
        parts.known[task] = found
        value, samples = found
        columns.append(answers.metric(task, value, bounds_of(samples, value, len(answers.rows))))
    kinds = [parts.average(kind, [task for task in tasks if task.endswith(kind)]) for kind in ("image", "text")]
    return [parts.average("average", ["image", "text"]), *kinds, *columns, *each, *plain(rows, compat)[:1]]


def _column_mean(answers: Answers, compat: Compat, *, seed: int) -> tuple[float, np.ndarray] | None:
    """Mean of the columns of one task and its replicates; None without a sample in any column.

    Resampled within each cell: across cells, a resample that empties one would lower the published mean (an empty cell
    counts 0) although no answer did.
    """
    metas = [row["meta"] for row in answers.rows]
    where = cells([m["context_length"] for m in metas], [m["placed_depth"] for m in metas])
    filled = [int(cell) for cell in np.unique(where) if cell >= DEPTHS]  # the first five hold what is too short
    if not filled:
        return None
    per_column = Counter(cell // DEPTHS for cell in filled)
    value, samples = 0.0, np.zeros(1000)
    for cell in filled:
        upstream = compat == "upstream"
        weight = 1 / (len(EDGES) * DEPTHS) if upstream else 1 / (len(per_column) * per_column[cell // DEPTHS])
        values = answers.values[where == cell]
        value += weight * float(values.mean())
        columns = np.stack([values, np.ones_like(values)], axis=1)
        samples += weight * replicates(columns, ratio, n=len(samples), seed=seed + cell)
    return value, samples


def longvqa(benchmark: Benchmark, rows: Sequence[Row], compat: Compat) -> list[Metric]:
    """Every task by its own metric (BLEU-4 of the task as one corpus), and their mean, which is ours. Source: 12.3."""
    groups, parts, each = by_group(rows), Parts(rows, compat), []
    for number, task in enumerate(benchmark.options["tasks"]):
        answers, name = Answers(groups.get(task, []), compat), f"{task} ({TASKS[task]})"
        if not answers.rows:
            each.append(answers.metric(name, None))
            continue
        columns, statistic = np.stack([answers.values, np.ones_like(answers.values)], axis=1), ratio
        if TASKS[task] == "BLEU4":
            columns = bleu_columns(task, [(row["completion"], row["gold"]) for row in answers.rows], compat)
            statistic = partial(np.apply_along_axis, bleu4, -1)
        value, samples = float(statistic(columns.sum(axis=0))), answers.bootstrap(columns, statistic, seed=number)
        parts.known[task] = (value, samples)
        each.append(answers.metric(name, value, bounds_of(samples, value, len(answers.rows))))
    return [parts.average("mean of 17 tasks", benchmark.options["tasks"]), *each]


AGGREGATES: dict[str, Callable[[Benchmark, Sequence[Row], Compat], list[Metric]]] = {
    "mean": mean,
    "gqa": gqa,
    "group_mean": group_mean,
    "pope": pope,
    "milebench": milebench,
    "mme": mme,
    "mmmu": mmmu,
    "mmniah": mmniah,
    "mmvet": mmvet,
    "longvqa": longvqa,
    "not_scored": not_scored,
    "whole_sets": whole_sets,
}
"""Aggregate name of a table -> function(benchmark, rows, compat) -> metrics, the headline first."""
