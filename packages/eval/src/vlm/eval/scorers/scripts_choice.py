"""Published evaluation scripts of benchmarks with options (MMVP, SEED-Bench, MMMU, MMBench); see `scripts`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from vlm.core.errors import DataError
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.choice import mcq_letter_extract, read_letter, seed_letter
from vlm.eval.scorers.mmbench import NO_REPLY, only_text, vlmevalkit_can_infer
from vlm.eval.scorers.mmmu import DOMAINS, mmmu_open_eval
from vlm.eval.scorers.scorer import Scorer

ROTATION = 1_000_000
"""Copy k of question i of MMBench has the index i + k * ROTATION."""

LETTERS = dict.fromkeys(ascii_uppercase[:13], "")
"""Options of MMMU whose texts are unknown."""

FORMS = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")
"""How a reply to MMBench may write a letter."""


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
    "mmbench_circular_prefetch": Scorer(mmbench_circular_prefetch),
    "mmbench_static_lmms": Scorer(mmbench_static_lmms),
    "mmmu_main_eval": Scorer(mmmu_main_eval),
    "mmvp_pair_accuracy": Scorer(mmvp_pair_accuracy),
    "seed_calculation": Scorer(seed_calculation),
}
