"""Long-VQA: normalized replies and references, each task by its own metric, and the mean over tasks."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.common import Item
from vlm.eval.measures.bleu import bleu4, bleu_counts
from vlm.eval.measures.english import english_words, noun_lemma
from vlm.eval.measures.reply import answer_text, claim
from vlm.eval.measures.rows import Answers, Metric, Parts, ResultRow, bounds_of, by_group
from vlm.eval.measures.short import close_number, same_answer, short_answers
from vlm.eval.measures.stats import Array, ratio
from vlm.eval.measures.text import Compat, vqa_normalize
from vlm.eval.scorers.choice import FOUR, read_letter
from vlm.eval.scorers.due import due_f1, due_wtq
from vlm.eval.scorers.owl import LongVqaRow, Rows, owl_anls, owl_bleu4, owl_eacc, owl_racc, references_of, reply_of
from vlm.eval.scorers.scorer import Reading, Scorer
from vlm.eval.scorers.vqa import leave_one_out, relaxed_accuracy
from vlm.eval.scorers.yesno import yes_or_no

TASKS: dict[str, str] = {
    **dict.fromkeys(["chartqa", "clevr", "dvqa", "gqa", "ocrvqa"], "RACC"),
    **dict.fromkeys(["svqa", "tabfact"], "EACC"),
    **dict.fromkeys(["deepform", "kleistercharity"], "F1"),
    **dict.fromkeys(["docvqa", "infovqa"], "ANLS"),
    **dict.fromkeys(["okvqa", "textvqa", "vizwiz"], "TEXTVQA"),
    **dict.fromkeys(["textcaps", "visualmrc"], "BLEU4"),
    "wikitablequestions": "WTQ",
}
"""Task -> metric. Any other task has RACC, as published."""

BARE = {"svqa", "tabfact", "kleistercharity", "docvqa", "textvqa", "textcaps"}
"""Known tasks without the long chain of normalization steps."""

_WORDS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty"""
NUMBERS = {word: str(number) for number, word in enumerate(_WORDS.split())}


def longvqa_rectify(task: str, an: str, *, compat: Compat = "upstream") -> str:
    """Normalize a reply or reference as Long-VQA compares it. Source: the published evaluator.

    upstream: whatever starts with no is no (`north`, `None`, `November`), and of `svqa` the first of the letters A to D
    is kept (`Canada` is C). fixed: only the word itself, and only a letter that stands alone or before a mark.

    Raises:
        DataError: The word list or WordNet is not installed.
    """
    text = an.strip().strip(".")
    if task == "svqa":
        first = re.match(r"([A-D])(?=$|[.):,])" if compat == "fixed" else r"([A-D])", text)
        text = first[1] if first else text
    elif task == "tabfact":
        text = _yes_or_no(text, compat)
    elif task in TASKS and task not in BARE:
        text = _full(_yes_or_no(text, compat))
    return text.strip()


def _yes_or_no(text: str, compat: Compat) -> str:
    end = r"(?![\w'’-])" if compat == "fixed" else ""
    found = re.match(f"([Yy]es|[Nn]o){end}", text)
    return found[1].capitalize() if found else text


def _full(text: str) -> str:
    text = " ".join(NUMBERS.get(word.lower(), word) for word in text.split(" "))
    text = re.sub(r"(?<=\d),(?=\d)", "", text)
    with_unit = re.match(r"([0-9]+\.?[0-9]*)\s+[A-Za-z\s]+$", text)
    text = (with_unit[1] if with_unit else text).removesuffix("%")
    for bracket in "[](){}":
        text = text.strip(bracket)
    words = (noun_lemma(_stem(word).lower()) for word in text.split(" "))
    return _quotient(" ".join(words))


def _stem(word: str) -> str:
    stem = word.removesuffix("ing").lower()
    if not word.endswith("ing") or len(stem) <= 1:
        return word
    known = english_words()
    undoubled = [stem[:-1]] if stem[-1] == stem[-2] else []
    return next((form for form in [stem, *undoubled, f"{stem}e"] if form in known), word)


def _quotient(text: str) -> str:
    for mark in ":/":
        if text.count(mark) == 1:
            above, below = text.split(mark)
            try:
                return str(float(above) / float(below))
            except (ValueError, ZeroDivisionError):
                continue
    return text


def longvqa_textvqa(rows: Rows, *, compat: Compat = "upstream") -> float | None:
    """Return the VQA accuracy in percent, with one reference (or ten) a row. Source: the published evaluator.

    fixed: any number of references, an empty or missing reply is wrong, no rows give None.

    Raises:
        AssertionError: upstream, other than one or ten references. ZeroDivisionError: upstream, no rows.
    """
    scores = []
    for row in rows:
        found = vqa_normalize(reply_of(row, compat))
        references = [vqa_normalize(text) for text in references_of(row)]
        if compat == "upstream" and len(references) not in (1, 10):
            raise AssertionError(f"{len(references)} references, the published scorer takes 1 or 10")
        scores.append(0.0 if compat == "fixed" and not found else leave_one_out(found, references))
    return None if compat == "fixed" and not scores else sum(scores) / len(scores) * 100


METRICS: dict[str, Callable[..., float | None]] = {
    "RACC": owl_racc,
    "EACC": owl_eacc,
    "F1": due_f1,
    "ANLS": owl_anls,
    "TEXTVQA": longvqa_textvqa,
    "BLEU4": owl_bleu4,
    "WTQ": due_wtq,
}
"""Name of a metric -> function(rows) -> percent."""


def rectified(task: str, rows: Rows, compat: Compat) -> list[LongVqaRow]:
    """Copy `rows` with both sides normalized; in fixed mode references may be lists, and a missing reply is empty."""

    def clean(text: Any) -> Any:
        if compat == "fixed" and (text is None or isinstance(text, list)):
            return [clean(each) for each in text] if text else ""
        return longvqa_rectify(task, text, compat=compat)

    return [{**row, "pr": clean(row["pr"]), "an": clean(row["an"])} for row in rows]


def bleu_columns(task: str, rows: Sequence[tuple[str, Any]], compat: Compat) -> Array:
    """Count (reply, reference) rows, normalized as one corpus, for `bleu4` of the sums: float64 [rows, 10]."""
    given: list[LongVqaRow] = [{"id": i, "pr": reply, "an": text} for i, (reply, text) in enumerate(rows)]
    cleaned = rectified(task, [as_read(task, row) for row in given] if compat == "fixed" else given, compat)
    return bleu_counts([reply_of(row, compat) for row in cleaned], [references_of(row) for row in cleaned])


def as_read(task: str, row: LongVqaRow) -> LongVqaRow:
    """Return the row with the short answer of its reply, as a person reads it; of a caption all that is claimed.

    Yes, no and letters are read by their rules, numbers of a relaxed task by `close_number`. Else that short answer of
    the reply counts which the metric likes best. Source: ours.
    """
    reply, metric = row["pr"], TASKS.get(task, "RACC")
    if not isinstance(reply, str):
        return row
    if metric == "BLEU4":
        return {**row, "pr": claim(answer_text(reply))}
    references = [str(text) for text in (row["an"] if isinstance(row["an"], list) else [row["an"]])]
    kinds = {text.strip(" .").lower() for text in references}
    if kinds <= {"yes", "no", "true", "false"}:
        truth = task == "tabfact" or not kinds <= {"yes", "no"}
        found = yes_or_no(reply, truth)
        return {**row, "pr": next((text for text in references if yes_or_no(text, truth) == found), found)}
    if task == "svqa" and {longvqa_rectify(task, text, compat="fixed") for text in references} <= FOUR.keys():
        return {**row, "pr": read_letter(reply, FOUR)}
    same = partial(relaxed_accuracy, compat="fixed") if metric == "RACC" else same_answer
    right = [text for text in references if same(reply, text)]
    numbers = metric == "RACC" and all(close_number("", text) is not None for text in references)
    if right or numbers or metric in ("EACC", "TEXTVQA"):  # what is not the same is wrong, however it is normalized
        return {**row, "pr": right[0] if right else ""}

    def score(one: str) -> float:
        return METRICS[metric](rectified(task, [{**row, "pr": one}], "fixed"), compat="fixed") or 0.0

    return {**row, "pr": max(short_answers(reply), key=score, default="")}


def longvqa_end_to_end(task: str, rows: Rows, *, compat: Compat = "upstream") -> dict[str, float | None]:
    """Return {metric of the task: percent} of rows `{"id", "pr", "an"}`. Source: the published evaluator.

    References are normalized like replies in both modes, else they could not match. upstream: samples that ran out of
    memory are not among the rows. fixed: replies are read as a person does (`as_read`); give samples out of memory with
    `pr` None, and they count as wrong.

    Raises:
        Exception: Whatever the metric of the task raises.
    """
    metric = TASKS.get(task, "RACC")
    if compat == "fixed":
        rows = [as_read(task, row) for row in rows]
    return {metric: METRICS[metric](rectified(task, rows, compat), compat=compat)}


def _one_row(item: Item, completion: str) -> dict[str, Any]:
    length = item.meta["context_length"]
    return {"task": item.group, "rows": [{"id": item.id, "le": length, "pr": completion, "an": item.gold}]}


def _fraction(item: Item, completion: str, result: dict[str, float], compat: Compat) -> Reading:
    row = LongVqaRow(id=item.id, pr=completion, an=item.gold)
    read = as_read(item.group, row)["pr"] if compat == "fixed" else completion
    return Reading(longvqa_rectify(item.group, read, compat=compat), sum(result.values()) / 100)


def longvqa(benchmark: Benchmark, rows: Sequence[ResultRow], compat: Compat) -> list[Metric]:
    """Return every task by its own metric (BLEU-4 of a task as one corpus), and their mean, which is ours."""
    groups, parts, each = by_group(rows), Parts(rows, compat), []
    for number, task in enumerate(benchmark.options["tasks"]):
        answers, name = Answers(groups.get(task, []), compat), f"{task} ({TASKS[task]})"
        if not answers.rows:
            each.append(answers.metric(name, None))
            continue
        columns, statistic = np.stack([answers.values, np.ones_like(answers.values)], axis=1), ratio
        if TASKS[task] == "BLEU4":
            columns = bleu_columns(task, [(row["completion"] or "", row["gold"]) for row in answers.rows], compat)
            statistic = partial(np.apply_along_axis, bleu4, -1)
        value, samples = float(statistic(columns.sum(axis=0))), answers.bootstrap(columns, statistic, seed=number)
        parts.known[task] = (value, samples)
        each.append(answers.metric(name, value, bounds_of(samples, value, len(answers.rows))))
    return [parts.average("mean of 17 tasks", benchmark.options["tasks"]), *each]


SCORERS = {
    "longvqa_end_to_end": Scorer(longvqa_end_to_end, _one_row, _fraction),
    "longvqa_rectify": Scorer(longvqa_rectify),
    "longvqa_textvqa": Scorer(longvqa_textvqa),
}
AGGREGATES = {"longvqa": longvqa}
