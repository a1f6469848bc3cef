"""MME: yes or no from replies, and the points of its 14 tasks. Source: the published evaluators."""

import re
from collections.abc import Sequence
from functools import partial

import numpy as np

from vlm.eval.benchmark import Benchmark
from vlm.eval.measures.rows import Answers, Metric, ResultRow, bounds_of, by_group, plain
from vlm.eval.measures.stats import Array, ratio
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.scorer import Scorer, as_answer, takes
from vlm.eval.scorers.sets import complete_sets, set_of
from vlm.eval.scorers.yesno import yes_or_no

TASKS = {
    "perception": "existence count position color posters celebrity scene landmark artwork OCR",
    "cognition": "commonsense_reasoning numerical_calculation text_translation code_reasoning",
}
WORDS = {"不是": "No", "是": "Yes", "否": "No"}
CHINESE = re.compile("[\u4e00-\u9fa5]")


def mme_post_processing(response: str, *, compat: Compat = "upstream") -> str:
    """Normalize a reply as for the result file of the published script.

    Line breaks and Chinese characters are removed, Chinese yes and no and English true and false are translated first;
    the result is in lower case. upstream: the words around a line break are joined. fixed: it becomes a space.
    """
    response = response.replace("\n", " " if compat == "fixed" else "")
    for word, english in WORDS.items():
        response = response.replace(word, english)
    return CHINESE.sub("", response.lower().replace("true", "yes").replace("false", "no"))


def mme_parse(pred_ans: str, *, compat: Compat = "upstream") -> str:
    """Read a normalized reply as `yes`, `no` or `other`.

    upstream: whichever of yes and no is inside the first four characters (`snow` is no). fixed: by whole words, other
    when the reply says neither or both.
    """
    if compat == "fixed":
        word = yes_or_no(pred_ans, truth=True)
        return "other" if word == "unknown" else word
    start = pred_ans.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def mme_reply(response: str, *, compat: Compat = "upstream") -> str:
    """Read a raw reply as `yes`, `no` or `other`: `mme_post_processing`, then `mme_parse`; fixed: the second alone."""
    if compat == "fixed":
        return mme_parse(response, compat=compat)
    return mme_parse(mme_post_processing(response, compat=compat), compat=compat)


def mme(benchmark: Benchmark, rows: Sequence[ResultRow], compat: Compat) -> list[Metric]:
    """Return points, not percent: perception (0 to 2000), cognition (0 to 800), each task (0 to 200).

    Task points are 100 times the share of right rows plus 100 times the share of images (sets) with both right.
    """
    groups = by_group(rows)
    totals, each = [], []
    for kind, names in TASKS.items():
        tasks = names.split()
        part = Answers([row for row in rows if row["group"] in tasks], compat)
        part.clusters = [set_of(row) for row in part.rows]
        columns = _points(part, tasks, [row for row in rows if row["group"] in tasks])
        missing = [task for i, task in enumerate(tasks) if not columns[:, 4 * i + 3].sum()]
        points = _task_points(columns.sum(axis=0), len(tasks))
        each += [
            Answers(groups.get(task, []), compat).metric(task, None if task in missing else float(value))
            for task, value in zip(tasks, points, strict=True)
        ]
        if missing:
            totals.append(part.metric(kind, None, note=f"{len(missing)} missing: {', '.join(missing[:5])}"))
            continue
        value = float(points.sum())
        samples = part.bootstrap(columns, partial(_total_points, n_tasks=len(tasks)), seed=0)
        totals.append(part.metric(kind, value, bounds_of(samples, value, 0)))
    return [*totals, *each, *plain(rows, compat)[:1]]


def _points(answers: Answers, tasks: Sequence[str], rows: Sequence[ResultRow]) -> Array:
    """Count right rows, rows, images with both right, and images (on the first row of each), [rows, 4 per task]."""
    columns, seen = np.zeros((len(answers.rows), 4 * len(tasks))), set()
    whole = complete_sets(rows, answers)
    for i, (row, value) in enumerate(zip(answers.rows, answers.values, strict=True)):
        image, start = set_of(row), 4 * tasks.index(row["group"])
        columns[i, start : start + 2] = value, 1
        if image in whole and image not in seen:
            columns[i, start + 2 : start + 4] = whole[image], 1
            seen.add(image)
    return columns


def _task_points(sums: Array, n_tasks: int) -> Array:
    """Return hundreds of points, [..., 4 per task] -> [..., tasks]; NaN for a task without rows or images."""
    points: Array = ratio(sums.reshape(*sums.shape[:-1], n_tasks, 2, 2)).sum(axis=-1)
    return points


def _total_points(sums: Array, n_tasks: int) -> Array:
    """Return hundreds of points of all tasks together, [..., 4 per task] -> [...]."""
    total: Array = _task_points(sums, n_tasks).sum(axis=-1)
    return total


SCORERS = {
    "mme_parse": Scorer(mme_parse),
    "mme_post_processing": Scorer(mme_post_processing),
    "mme_reply": Scorer(mme_reply, takes("response"), as_answer),
}
AGGREGATES = {"mme": mme}
