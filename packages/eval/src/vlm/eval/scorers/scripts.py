"""Published evaluation scripts: from files of raw replies to the totals that they print.

No benchmark table uses them: a run scores reply by reply, and aggregates with intervals. They are here under the names
of the golden fixtures, so that tests can compare scorers and aggregates with what the scripts print.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

import numpy as np

from vlm.core.errors import DataError
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.choice import mcq_letter_extract, read_letter, seed_letter
from vlm.eval.scorers.gqa import gqa_accuracy_single
from vlm.eval.scorers.mmbench import NO_REPLY, only_text, vlmevalkit_can_infer
from vlm.eval.scorers.mme import TASKS, mme_parse
from vlm.eval.scorers.mmmu import DOMAINS, mmmu_open_eval
from vlm.eval.scorers.mmniah import (
    DEPTHS,
    EDGES,
    cells,
    column_scores,
    mmniah_choice,
    mmniah_counting,
    mmniah_text,
)
from vlm.eval.scorers.scorer import Scorer
from vlm.eval.scorers.yesno import pope_parse

PERFECT = 200.0
"""Points of a task of MME with every reply right: 100 for the replies, 100 for the images."""

ROTATION = 1_000_000
"""Copy k of question i of MMBench has the index i + k * ROTATION."""

LETTERS = dict.fromkeys(ascii_uppercase[:13], "")
"""Options of MMMU whose texts are unknown."""

FORMS = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")
"""How a reply to MMBench may write a letter."""


def gqa_official(items: Sequence[Mapping[str, str]], *, compat: Compat = "upstream") -> dict[str, float]:
    """Return percentages (two decimals) `binary` (`structural` is not query), `open` and `accuracy`; 0 for no items.

    upstream: predictions are converted before. fixed: raw replies are converted here.
    """

    def percent(kinds: tuple[bool, ...]) -> float:
        chosen = [item for item in items if (item["structural"] == "query") in kinds]
        right = sum(
            item["prediction"] == item["answer"]
            if compat == "upstream"
            else gqa_accuracy_single(item["answer"], item["prediction"], compat="fixed")
            for item in chosen
        )
        return round(right / len(chosen) * 100, 2) if chosen else 0.0

    return {"binary": percent((False,)), "open": percent((True,)), "accuracy": percent((True, False))}


def pope_metrics(texts: Sequence[str], labels: Sequence[str], *, compat: Compat = "upstream") -> dict[str, Any]:
    """Return TP, FP, TN, FN (yes is positive), accuracy, precision, recall, f1, yes_ratio of one category of POPE.

    Ratios are fractions. upstream: paired by order, the longer list is cut. fixed: the lists must be equally long, an
    unknown reply is wrong whatever the label, undefined ratios are None. Source: the published evaluators.

    Raises:
        ZeroDivisionError: upstream, without positives.
        ValueError: fixed, for lists of different lengths.
    """
    replies = [pope_parse(text, compat=compat) for text in texts]
    pairs = list(zip(replies, labels, strict=compat == "fixed"))
    right = {"yes": "TP", "no": "TN"}
    wrong = {"yes": "FN", "no": "FP"}
    found = Counter(right[label] if reply == label else wrong[label] for reply, label in pairs)
    counts = {key: found[key] for key in ("TP", "FP", "TN", "FN")}
    tp, fp, tn, fn = counts.values()
    n = tp + fp + tn + fn
    if compat == "fixed":
        return {
            **counts,
            "accuracy": (tp + tn) / n if n else None,
            "precision": tp / (tp + fp) if tp + fp else None,
            "recall": tp / (tp + fn) if tp + fn else None,
            "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None,
            "yes_ratio": replies.count("yes") / n if n else None,
        }
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    f1 = 2 * precision * recall / (precision + recall)
    accuracy, yes_ratio = (tp + tn) / n, replies.count("yes") / len(replies)
    return {
        **counts,
        "accuracy": accuracy,
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "yes_ratio": yes_ratio,
    }


def mme_score(files: Mapping[str, Sequence[Sequence[str]]], *, compat: Compat = "upstream") -> dict[str, float]:
    """Return points per task of MME (0 to 200), `perception_total` and `cognition_total`.

    Rows are image, question, yes or no, and reply; two consecutive rows are one image. Task points are 100 times the
    share of right replies, plus 100 times the share of images with both right. upstream: a task that is not given
    counts as perfect (as the golden values were made), and a row that does not read as one line of four columns is
    skipped. fixed: only given tasks count, and a task that is not MME's is refused.

    Raises:
        AssertionError: A row without its partner, or a reference other than yes or no (as published).
        ValueError: upstream, for a task in which no reply is yes or no (the published metrics stop there).
        DataError: fixed, for an unknown task, one without rows, or a row without four columns.
    """
    if compat == "fixed" and (unknown := files.keys() - " ".join(TASKS.values()).split()):
        raise DataError(f"MME has no tasks {sorted(unknown)}", expected=" ".join(TASKS.values()))
    scores: dict[str, float] = {}
    for kind, names in TASKS.items():
        points = {name: task_points(files[name], compat) for name in names.split() if name in files}
        missing = 0 if compat == "fixed" else len(names.split()) - len(points)
        scores |= {f"{kind}_total": sum(points.values()) + PERFECT * missing, **points}
    return scores


def task_points(rows: Sequence[Sequence[str]], compat: Compat = "upstream") -> float:
    """Return the points of one task of MME, 0 to 200; see `mme_score`."""
    if compat == "upstream":  # through the text file of the published script
        lines = re.split(r"\r\n|\r|\n", "".join("\t".join(map(str, row)) + "\n" for row in rows))[:-1]
        rows = [line.split("\t") for line in lines]
    right: list[bool] = []
    readable, whole = False, 0
    for first in range(0, len(rows), 2):
        pair = rows[first : first + 2]
        if len(pair) != 2:
            raise AssertionError("a row without its partner")
        image: list[bool] = []
        for row in pair:
            if len(row) != 4:
                if compat == "fixed":
                    raise DataError(f"a row of {len(row)} columns", expected="image, question, yes or no, reply")
                continue
            gold, found = row[2].lower(), mme_parse(row[3], compat=compat)
            if gold not in ("yes", "no"):
                raise AssertionError(f"reference {row[2]!r}, expected yes or no")
            readable |= found != "other"
            image.append(found == gold)
        whole += len(image) == 2 and all(image)
        right += image
    if compat == "upstream" and not readable:
        raise ValueError("no reply is yes or no")
    if not right:
        raise DataError("a task without rows", expected="two rows per image")
    return 100 * sum(right) / len(right) + 100 * whole / (len(rows) / 2)


def mmvp_pair_accuracy(answers: Sequence[str], gts: Sequence[str], *, compat: Compat = "upstream") -> float:
    """Return the share of pairs of consecutive rows with both letters right, 0 to 1. Source: the published evaluators.

    upstream: a row without a partner is dropped. fixed: rows must pair up, and replies are read by `read_letter`.

    Raises:
        ZeroDivisionError: upstream, without a pair.
        DataError: fixed, for no rows or rows that do not pair up.
    """
    if compat == "fixed":
        if not gts or len(answers) != len(gts) or len(gts) % 2:
            raise DataError(f"{len(answers)} answers, {len(gts)} references", expected="two of each per pair")
        answers = [read_letter(answer, {"A": "", "B": ""}) for answer in answers]
    right = [answer == gt for answer, gt in zip(answers, gts, strict=False)]
    pairs = list(zip(right[::2], right[1::2], strict=False))
    return sum(map(all, pairs)) / len(pairs)


def seed_calculation(
    preds: Sequence[Mapping[str, Any]], anno: Mapping[str, Any], *, compat: Compat = "upstream"
) -> dict[str, float | None]:
    """Return percentages (two decimals) per question type of SEED-Bench, of all, of images (types 1 to 9), of videos.

    Replies are read by `seed_letter`. fixed: a share of no rows is None. Source: the published evaluators.

    Args:
        preds: Rows of `question_id` and `prediction`, the raw reply.
        anno: The published annotation file (`questions`, `question_type`).
        compat: The published script, or its correction.

    Raises:
        IndexError, ZeroDivisionError: upstream, for an empty reply, or a share of no rows (as published).
        KeyError: A question that is not in the annotations.
    """
    gold = {str(question["question_id"]): question for question in anno["questions"]}
    right: dict[int, list[bool]] = {number: [] for number in anno["question_type"].values()}
    for row in preds:
        question, letter = gold[str(row["question_id"])], seed_letter(row["prediction"], compat=compat)
        right[question["question_type_id"]].append(letter == question["answer"])

    def share(numbers: Sequence[int]) -> float | None:
        values = [value for number in numbers for value in right[number]]
        return None if compat == "fixed" and not values else round(sum(values) / len(values) * 100, 2)

    return {
        **{f"Data type {name}": share([number]) for name, number in anno["question_type"].items()},
        "Total accuracy": share(list(right)),
        "Image accuracy": share([number for number in right if 1 <= number <= 9]),
        "Video accuracy": share([number for number in right if not 1 <= number <= 9]),
    }


def mmmu_main_eval(
    outputs: Mapping[str, str], answers: Mapping[str, Mapping[str, Any]], *, compat: Compat = "upstream"
) -> dict[str, dict[str, float]]:
    """Return `num` and `acc` (0 to 1, three decimals) per subject of MMMU, per domain (`Overall-...`), and `Overall`.

    Ids are like `validation_Art_Theory_1`; `answers` holds `question_type` and `ground_truth` (one or a list). A letter
    must be equal, all else is judged by `mmmu_open_eval`. upstream: only ids in `outputs` count. fixed: every id of
    `answers` counts, a missing or empty reply is wrong, and letters are read by `read_letter`.

    Raises:
        KeyError: A reply to a question that is not in `answers`.
    """
    known = {subject for names in DOMAINS.values() for subject in names.split()}
    marked = {_subject(key) for key in answers}
    if compat == "fixed":
        outputs = dict.fromkeys(answers, "") | dict(outputs)
    right: dict[str, list[bool]] = {}
    for key, reply in outputs.items():
        if (subject := _subject(key)) in known & marked:
            right.setdefault(subject, []).append(_right(reply, answers[key], compat))
    found: dict[str, dict[str, float]] = {}
    for domain, names in DOMAINS.items():
        inside = {name: right[name] for name in names.split() if name in right}
        found[f"Overall-{domain}"] = _accuracy(inside.values())
        found |= {name: _accuracy([values]) for name, values in inside.items()}
    return found | {"Overall": _accuracy(right[name] for name in sorted(right))}


def _subject(key: str) -> str:
    return "_".join(key.split("_")[1:-1])


def _right(reply: str, answer: Mapping[str, Any], compat: Compat) -> bool:
    gold = answer["ground_truth"]
    if compat == "fixed" and not reply.strip():
        return False
    if answer["question_type"] != "multiple-choice":
        return mmmu_open_eval(gold, reply, compat=compat)
    letter = read_letter(reply, LETTERS) if compat == "fixed" else reply
    return letter in gold if isinstance(gold, list) else letter == gold


def _accuracy(subjects: Iterable[Sequence[bool]]) -> dict[str, float]:
    """Weigh subjects by questions, through their own shares as published (which can change a rounding)."""
    n, total = 0, 0.0
    for values in subjects:
        n += len(values)
        total += sum(values) / len(values) * len(values)
    return {"num": n, "acc": round(total / n, 3) if n else 0}


def mmniah_aggregate_v2pe(task: str, rows: Sequence[dict[str, Any]], *, compat: Compat = "upstream") -> dict[str, Any]:
    """Return columns, average and plain accuracies of one task of MM-NIAH. Source: the published evaluators.

    Rows hold `answer`, the raw `response`, `context_length` and `placed_depth`.
    """
    n_cells = (len(EDGES) + 1) * DEPTHS
    counting = "counting" in task
    answers = [json.loads(r["answer"]) if counting and isinstance(r["answer"], str) else r["answer"] for r in rows]
    values = [float(_mmniah_score(a, r["response"], compat=compat)) for a, r in zip(answers, rows, strict=True)]
    where = cells([r["context_length"] for r in rows], [r["placed_depth"] for r in rows])
    sums = np.bincount(where, weights=values, minlength=n_cells).astype(float)
    counts = np.bincount(where, minlength=n_cells).astype(float)
    columns = [round(float(score), 6) for score in column_scores(sums, counts, compat=compat)]
    by_column, right = (x.reshape(-1, DEPTHS).sum(axis=1)[1:] for x in (counts, sums))
    return {
        task: columns,
        "average": float(np.nanmean(columns)) if not np.isnan(columns).all() else None,
        "weighted_acc": np.divide(right, by_column, out=np.zeros_like(right), where=by_column > 0).tolist(),
        "sample_number_array": by_column.tolist(),
        "weighted_avg_acc": float(sums.sum() / counts.sum()),
        "context_ranges": [f"{edge // 1000}k" for edge in EDGES],
    }


def _mmniah_score(answer: Any, response: str, *, compat: Compat = "upstream") -> float:
    """Score by the type of the reference: index of an option, list of counts, or text."""
    if isinstance(answer, list):
        return mmniah_counting(answer, response, compat=compat)
    if isinstance(answer, int):
        return mmniah_choice(answer, response, compat=compat)
    return mmniah_text(answer, response, compat=compat)


def mmbench_circular_prefetch(rows: Sequence[Mapping[str, Any]], *, compat: Compat = "upstream") -> int | None:
    """Score one circular group of MMBench (`GT`, `prediction`, `A`...). Source: VLMEvalKit.

    1: all copies are right. 0: some copy is wrong. None: left to the judge, and wrong without one.
    """
    found = [
        (
            row["GT"],
            vlmevalkit_can_infer(row["prediction"], _options(row, "".join(c for c in ascii_uppercase if c in row))),
        )
        for row in rows
    ]
    if any(letter and letter != gold for gold, letter in found):
        return 0
    return 1 if all(letter for _, letter in found) else None


def mmbench_static_lmms(rows: Sequence[Mapping[str, Any]], *, compat: Compat = "upstream") -> dict[str, float]:
    """Return `overall`: the share of questions (`index` below 1,000,000) with every copy right; NaN without any.

    Rows hold `index`, `answer`, `prediction`, `A` to `D`. Source: lmms-eval's evaluator of MMBench with `static`.

    Raises:
        KeyError: A row without one of its columns.
    """
    groups: dict[int, list[bool]] = {row["index"]: [] for row in rows if row["index"] < ROTATION}
    for row in rows:
        if (number := row["index"] % ROTATION) in groups:
            groups[number].append(_static_letter(row) == row["answer"])
    return {"overall": sum(map(all, groups.values())) / len(groups) if groups else math.nan}


def _static_letter(row: Mapping[str, Any]) -> str | bool:
    options, reply = _options(row, "ABCD"), str(row["prediction"])
    letter = _listed_letter(reply) or only_text(reply, options, "ABCD")
    return letter or mcq_letter_extract(reply, choices=sorted(options) or "ABCDEFGH")


def _listed_letter(reply: str) -> str | bool:
    """Return the only letter of A to E that is a word, bare or in the first of `FORMS` that has just one."""
    if NO_REPLY in reply:
        return False
    words = set(reply.split())
    bare = [letter for letter in "ABCDE" if letter in words]
    if len(bare) == 1 and not ("A" in words and len(reply.split()) > 3):  # an A in a sentence may be the article
        return bare[0]
    for form in FORMS:
        formed = [letter for letter in "ABCDE" if form.format(letter) in words]
        if len(formed) == 1:
            return formed[0]
    return False


def _options(row: Mapping[str, Any], letters: str) -> dict[str, Any]:
    """Return the filled options; a table marks an absent one by None or NaN."""
    texts = {letter: row[letter] for letter in letters}
    return {key: text for key, text in texts.items() if text is not None and text == text}


SCORERS = {
    "gqa_official": Scorer(gqa_official),
    "mmbench_circular_prefetch": Scorer(mmbench_circular_prefetch),
    "mmbench_static_lmms": Scorer(mmbench_static_lmms),
    "mme_score": Scorer(mme_score),
    "mmmu_main_eval": Scorer(mmmu_main_eval),
    "mmniah_aggregate_v2pe": Scorer(mmniah_aggregate_v2pe),
    "mmvp_pair_accuracy": Scorer(mmvp_pair_accuracy),
    "pope_metrics": Scorer(pope_metrics),
    "seed_calculation": Scorer(seed_calculation),
}
