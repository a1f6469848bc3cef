"""MileBench: letters, needles, containment, ROUGE-L, and averages of its sets. Source: the published evaluators."""

import re
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from vlm.eval.benchmark import Benchmark
from vlm.eval.measures.letters import label, normal_text, read_label
from vlm.eval.measures.reply import answer_text, claim, says
from vlm.eval.measures.rouge import rouge_l
from vlm.eval.measures.rows import Answers, Metric, Parts, ResultRow, by_group, plain
from vlm.eval.measures.stats import ratio
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.scorer import Scorer, by_fields, takes

ESCAPED = set("\\.^$*+?{}[]|()")
"""Characters that are special in a regular expression and that the published matcher escapes."""


def milebench_process(text: str, *, compat: Compat = "upstream") -> str:
    """Normalize a text as published, the same in both modes; commas are removed with the other marks, not before."""
    return normal_text(text)


class ChoiceScore(TypedDict):
    """The label that was read, its score 0 or 1, and [sum, number] by number of images."""

    extracted: str
    score: int
    accuracy: float
    levels: dict[str, list[float]]


def milebench_multichoice(
    pred_response: str,
    gt_response: str,
    choice_list: Sequence[str],
    n_images: int = 2,
    *,
    compat: Compat = "upstream",
) -> ChoiceScore:
    """Return the chosen label (`extracted`), the `score` 0 or 1, and sums by number of images (`levels`).

    upstream: an empty reply is C, `The answer is B` is AB, `10` hits the option `1`. fixed: `read_label`.

    Raises:
        AssertionError: The answer is not among the options (as published).
    """
    options = [milebench_process(choice) for choice in choice_list]
    gold = milebench_process(gt_response)
    if gold not in options:
        raise AssertionError(f"{gt_response!r} is not an option")
    if compat == "upstream":
        found = _match(milebench_process(pred_response), options)
    else:
        found = read_label(pred_response, choice_list)
    score = int(found == label(options.index(gold)))
    level = "Few" if n_images < 6 else "Medium" if n_images <= 31 else "Many"
    levels = {name: [float(score), 1.0] if name == level else [0.0, 0.0] for name in ("Few", "Medium", "Many")}
    return {"extracted": found, "score": score, "accuracy": float(score), "levels": levels}


def _match(reply: str, options: Sequence[str]) -> str:
    if not reply:
        return "C"
    labels = [label(i) for i in range(len(options))]
    titled = [milebench_process(f"{name} {option}") for name, option in zip(labels, options, strict=True)]
    if hit := re.search("|".join(map(re.escape, titled)), reply):
        return hit[0][:1].upper()
    tight = [milebench_process(option).replace(" ", "") for option in options]  # normalized twice, as published
    if hit := re.search("|".join(map(re.escape, tight)), reply.replace(" ", "")):
        for name, option in zip(labels, tight, strict=True):
            # the published matcher compares the hit with the escaped text: an option with such a character never wins
            if hit[0] == option and not ESCAPED & set(option):
                return name
    if len(reply) <= 2 and reply.upper() in labels:
        return reply.upper()
    return "".join(letter.upper() for letter in reply if letter.upper() in labels)


def milebench_rouge_l(pred_response: str, gt_response: str, *, compat: Compat = "upstream") -> float:
    """Return the ROUGE-L F-score of the normalized texts, 0 for an empty reply. fixed: of what the reply announces.

    Raises:
        AssertionError, ValueError: upstream, when the reference (or either text's sentences) is empty, as published.
    """
    if compat == "fixed":
        pred_response = claim(answer_text(pred_response))
    found, gold = milebench_process(pred_response), milebench_process(gt_response)
    if compat == "fixed" and not (found.strip(". ") and gold.strip(". ")):
        return 0.0
    if not gold:
        raise AssertionError("empty reference")
    return rouge_l(found, gold) if found else 0.0


def milebench_needle(pred_response: str, gt_response: str, *, compat: Compat = "upstream") -> int:
    """Return 1 iff the normalized reference is a token of the normalized reply. fixed: `milebench_contains`."""
    if compat == "fixed":
        return milebench_contains(pred_response, gt_response, compat=compat)
    return int(milebench_process(gt_response) in milebench_process(pred_response).split())


def milebench_contains(pred_response: str, gt_response: str, *, compat: Compat = "upstream") -> int:
    """Return 1 iff the normalized reference is inside the normalized reply (fixed: as whole words, and not empty)."""
    pred_response = answer_text(pred_response) if compat == "fixed" else pred_response
    found, gold = milebench_process(pred_response), milebench_process(gt_response)
    return int(gold in found if compat == "upstream" else bool(gold) and says(found, gold))


def milebench(benchmark: Benchmark, rows: Sequence[ResultRow], compat: Compat) -> list[Metric]:
    """Return T, S and NI by both readings (mean over sets, mean over tasks), their average, and every set."""
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


MULTICHOICE = Scorer(
    milebench_multichoice,
    takes("pred_response", "gt_response", choice_list="choice_list", n_images="n_images"),
    by_fields("score", "extracted"),
)
SCORERS = {
    "milebench_contains": Scorer(milebench_contains, takes("pred_response", "gt_response")),
    "milebench_gpr_style": MULTICHOICE,  # the same rule on other options: fixtures keep the two apart
    "milebench_multichoice": MULTICHOICE,
    "milebench_needle": Scorer(milebench_needle, takes("pred_response", "gt_response")),
    "milebench_process": Scorer(milebench_process),
    "milebench_rouge_l": Scorer(milebench_rouge_l, takes("pred_response", "gt_response")),
}
AGGREGATES = {"milebench": milebench}
