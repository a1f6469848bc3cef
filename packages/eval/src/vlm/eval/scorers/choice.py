"""Lettered options from free replies: MMMU, ScienceQA, MMVP, SEED-Bench, RealWorldQA, Video-MME.

Published rules read a reply in four ways that disagree; `fixed` is one rule for all of them, `read_letter`.
"""

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from vlm.core.errors import DataError
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.milebench import first_label

FOUR = dict.fromkeys("ABCD", "")
"""Options whose texts are unknown."""


def read_letter(reply: str, options: Mapping[str, str]) -> str:
    """Our reading of a reply to options (letter -> text): a letter of `options`, or "". Source: ours

    >>> [read_letter(reply, {"A": "cat", "B": "dog"}) for reply in ("(b)", "So A", "a dog", "Because", "cat or dog")]
    ['B', 'A', 'B', '', '']
    """
    size = max((ascii_uppercase.index(letter) + 1 for letter in options), default=0)
    found = first_label(reply, [str(options.get(letter, "")) for letter in ascii_uppercase[:size]])
    return found if found in options else ""


def option_post_process(pred: str, option: Mapping[str, str], *, compat: Compat = "upstream") -> str:
    """The reply as the letter of an option (letter -> text). Source: the published evaluators

    upstream: one character stays as it is; else a first character that is a letter wins (`Because` is B); else the
    first option whose text is inside (`100` contains `10`); else the reply unchanged. fixed: `read_letter`.

    Raises:
        IndexError: upstream, for an empty reply (as published).
    """
    if compat == "fixed":
        return read_letter(pred, option)
    pred = pred.strip()
    if len(pred) == 1:
        return pred
    if pred[0] in option:
        return pred[0]
    return next((letter for letter, text in option.items() if text in pred), pred)


def scienceqa_match(pred: str, choices: Sequence[str], answer: int, *, compat: Compat = "upstream") -> int:
    """1 iff `option_post_process` gives the letter of option number `answer`; at most five options.

    Raises:
        IndexError: upstream, for an empty reply or a sixth option (as published).
    """
    letters = "ABCDE"
    options = {letters[i]: choice for i, choice in enumerate(choices)}
    return int(option_post_process(pred, options, compat=compat) == letters[answer])


def mmvp_pair_accuracy(answers: Sequence[str], gts: Sequence[str], *, compat: Compat = "upstream") -> float:
    """Share of pairs of consecutive rows with both letters right, 0..1. Source: the published evaluators

    upstream: a row without a partner is dropped. fixed: rows must pair up, and replies are read by `read_letter`.

    Raises:
        ZeroDivisionError: upstream, without a pair. DataError: fixed, for no rows or rows that do not pair up.
    """
    if compat == "fixed":
        if not gts or len(answers) != len(gts) or len(gts) % 2:
            raise DataError(f"{len(answers)} answers, {len(gts)} references", expected="two of each per pair")
        answers = [read_letter(answer, {"A": "", "B": ""}) for answer in answers]
    right = [answer == gt for answer, gt in zip(answers, gts, strict=False)]
    pairs = list(zip(right[::2], right[1::2], strict=False))
    return sum(map(all, pairs)) / len(pairs)


def seed_letter(prediction: str, *, compat: Compat = "upstream") -> str:
    """The letter of a reply in SEED-Bench. upstream: its first character. fixed: `read_letter`.

    Raises:
        IndexError: upstream, for an empty reply (as published).
    """
    if compat == "fixed":
        return read_letter(prediction, FOUR)
    return prediction if len(prediction) == 1 else prediction[0]


def seed_calculation(
    preds: Sequence[Mapping[str, Any]], anno: Mapping[str, Any], *, compat: Compat = "upstream"
) -> dict[str, float | None]:
    """Percentages (two decimals) per question type, of all, of images (types 1 to 9) and of videos, from raw replies.

    `preds`: `question_id`, `prediction`; `anno`: the published annotation file (`questions`, `question_type`).
    Replies are read by `seed_letter`. fixed: a share of no rows is None.
    Source: the published evaluators

    Raises:
        IndexError, ZeroDivisionError: upstream, for an empty reply, or a share of no rows (as published).
        KeyError: a question that is not in the annotations.
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


_ARTICLED = ("answer", "correct answer", "best answer", "correct option", "best option", "choice", "correct choice")
PHRASES = (
    *(f"{the}{noun} is" for noun in _ARTICLED for the in ("the ", "")),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
"""What announces an answer; of each the first occurrence counts, so that longer forms find later letters."""


def mcq_letter_extract(response: str | None, *, choices: Sequence[str] = "ABCD", compat: Compat = "upstream") -> str:
    """The letter a reply chooses, or "". Source: lmms-eval's shared extractor

    upstream: the strongest kind of mention wins, then the last of that kind: at the start, at the end, after a phrase
    of `PHRASES`, `(A)`, `A.`, `A:`, `A)`, `A `, and, if there is none of these, anywhere (`Because` is B).
    fixed: `read_letter`.
    """
    if not response or not response.strip():
        return ""
    if compat == "fixed":
        return read_letter(response, dict.fromkeys(choices, ""))
    text = response.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    text = f" {text} "
    bare, lower = text.strip(), text.lower()
    after = [lower.find(phrase) + len(phrase) for phrase in PHRASES if phrase in lower]
    found: list[tuple[int, int, str]] = []
    for letter in choices:
        if bare.startswith(letter) and not bare[1:2].isalpha():
            found.append((10, 0, letter))
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            found.append((9, len(text) - 1, letter))
        found += [(7, place, letter) for start in after if (place := text.find(letter, start)) >= 0]
        for strength, form in ((6, "({})"), (5, "{}."), (4, "{}:"), (3, "{})"), (2, "{} ")):
            if (place := text.rfind(form.format(letter))) >= 0:
                found.append((strength, place, letter))
    found = found or [(0, text.rfind(letter), letter) for letter in choices if letter in text]
    return max(found, key=lambda mention: mention[:2], default=(0, 0, ""))[2]


def realworldqa_lmms(pred: str, answer: str, *, compat: Compat = "upstream") -> float:
    """1 iff the letter of the reply (`mcq_letter_extract`), or its text without case and final periods, is the answer.

    Source: lmms-eval. fixed differs in the letter only; number words are not converted in either mode.
    """
    gold = answer.strip()
    if gold.upper() in tuple("ABCD"):
        return float(mcq_letter_extract(pred, compat=compat) == gold.upper())
    found = pred.lower().strip().rstrip(".")
    return float(found == gold.lower() and bool(found or compat == "upstream"))
