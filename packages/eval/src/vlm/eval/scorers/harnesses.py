"""What lmms-eval and VLMEvalKit make of the same replies: metrics by their rules, beside the published ones.

    harness_metrics(load_benchmark("POPE"), rows)     # [F1 (lmms-eval), accuracy (lmms-eval), F1 (VLMEvalKit), ...]

The note of each metric names the rule and counts the replies that score otherwise than by the published rule of our
table. The rules are those of lmms-eval 0.7.3 and VLMEvalKit 0.0.20 without a judge. A slow test runs both on the same
files (`tests/eval/test_harness_scores.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from string import ascii_uppercase
from typing import Any

import numpy as np

from vlm.eval.benchmark import Benchmark
from vlm.eval.measures.rows import ANSWERED, Answers, Metric, ResultRow, bounds_of, plain
from vlm.eval.measures.stats import Array
from vlm.eval.measures.text import strip_marks
from vlm.eval.scorers.mmbench import named_letter, only_text
from vlm.eval.scorers.mme import mme
from vlm.eval.scorers.sets import whole_sets
from vlm.eval.scorers.vqa import near

LMMS, KIT = "lmms-eval", "VLMEvalKit"

Number = Callable[[Benchmark, list[ResultRow], list[Any]], list[Metric]]
"""function(benchmark, rows with the scores of a harness, what it read in each row) -> its metrics."""


@dataclass(frozen=True)
class HarnessRule:
    """How one harness scores the replies to one benchmark.

    Attributes:
        harness: Its name, which the metrics carry.
        text: The rule in words.
        read: What it reads in a reply: the gold answer, when the reply is right.
        number: Its metrics.
    """

    harness: str
    text: str
    read: Callable[[ResultRow], Any]
    number: Number


def harness_metrics(benchmark: Benchmark, rows: Sequence[ResultRow]) -> list[Metric]:
    """Return the metrics of a benchmark by the rules of other harnesses; none where its scorer has no such rules."""
    rules = HARNESS_RULES.get(benchmark.scorer, ()) if isinstance(benchmark.scorer, str) else ()
    found: list[Metric] = []
    for rule in () if benchmark.server_scored else rules:
        words = [rule.read(row) if row["outcome"] in ANSWERED else None for row in rows]
        theirs: list[ResultRow] = [
            row if row["outcome"] not in ANSWERED else {**row, "score": float(word == row["gold"])}
            for row, word in zip(rows, words, strict=True)
        ]
        answered = sum(row["outcome"] in ANSWERED for row in rows)
        apart = sum(one["score"] != other["score"] for one, other in zip(rows, theirs, strict=True))
        note = f"{rule.text}; {apart} of {answered} replies score otherwise than by the published rule"
        for metric in rule.number(benchmark, theirs, words):
            text = f"{metric.note}; {note}" if metric.note else note
            found.append(replace(metric, name=f"{metric.name} ({rule.harness})", note=text))
    return found


def said(row: ResultRow) -> str:
    """Return the reply of a row."""
    return row["completion"] or ""


# yes or no -----------------------------------------------------------------------------------------------------------


def whole_reply(row: ResultRow) -> str:
    """Read yes or no where the reply is nothing else; "" in all others."""
    word = said(row).lower().strip()
    return word if word in ("yes", "no") else ""


def only_word(row: ResultRow) -> str:
    """Read yes or no where just one of them is among the words; "" in all others."""
    words = strip_marks(said(row).lower()).split()
    named = [word for word in ("yes", "no") if word in words]
    return named[0] if len(named) == 1 else ""


def beginning(row: ResultRow) -> str:
    """Read yes or no: y or n alone, else whichever is in the first four characters without periods."""
    reply = said(row).lower().strip().replace(".", "")
    if len(reply) == 1:
        return {"y": "yes", "n": "no"}.get(reply, "other")
    return next((word for word in ("yes", "no") if word in reply[:4]), "other")


def f1_of_all(benchmark: Benchmark, rows: list[ResultRow], words: list[Any], *, unread_is_no: bool) -> list[Metric]:
    """Return F1 over the questions of all categories together, 0 without a true positive; then the accuracy.

    Args:
        benchmark: Not used.
        rows: All rows.
        words: What was read in each.
        unread_is_no: Whether a reply in which nothing was read misses a yes.
    """
    answers = Answers(rows, "upstream")
    if not answers.rows:
        return [answers.metric("F1", None), answers.mean("accuracy")]
    read = [word for row, word in zip(rows, words, strict=True) if row["outcome"] in ANSWERED]
    yes, yes_said = (np.array([w == "yes" for w in given]) for given in ([r["gold"] for r in answers.rows], read))
    missed = ~yes_said if unread_is_no else np.array([word == "no" for word in read])
    columns = np.stack([yes & yes_said, ~yes & yes_said, yes & missed], axis=1).astype(float)

    def f1(totals: Array) -> Array:
        size = 2 * totals[..., 0] + totals[..., 1] + totals[..., 2]
        found: Array = np.divide(2 * totals[..., 0], size, out=np.zeros_like(size), where=size > 0)
        return found

    value = float(f1(columns.sum(axis=0)))
    bounds = bounds_of(answers.bootstrap(columns, f1, seed=0), value, answers.n_clusters)
    return [answers.metric("F1", value, bounds), answers.mean("accuracy")]


def points(benchmark: Benchmark, rows: list[ResultRow], words: list[Any]) -> list[Metric]:
    """Return MME's perception and cognition."""
    return mme(benchmark, rows, "upstream")[:2]


# charts --------------------------------------------------------------------------------------------------------------


def near_reference(row: ResultRow, *, stripped: bool) -> Any:
    """Return the gold answer where the reply is within 5 % of it, or the same text but for case."""
    reply, gold = said(row).strip() if stripped else said(row), row["gold"]
    return gold if any(near(reply, one) for one in ([gold] if isinstance(gold, str) else gold)) else None


def by_size(benchmark: Benchmark, rows: list[ResultRow], words: list[Any]) -> list[Metric]:
    """Return the mean over all items, and of each group."""
    return plain(rows, "upstream", "relaxed accuracy")


# letters -------------------------------------------------------------------------------------------------------------


def letter_near_end(row: ResultRow) -> str:
    """Read the only letter that stands alone, unless far from the end; else the only option whose text is inside."""
    options, gone = row["meta"].get("options", {}), row["meta"].get("published_without", [])
    choices = {letter: text for letter, text in options.items() if letter not in gone}
    reply = said(row) or "nan"  # what its tables make of an empty cell
    return named_letter(reply, choices) or str(only_text(reply, choices, ascii_uppercase, bounded=True) or "")


FORMS = ("{}", "{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")
"""How a letter may be written as a word, in the order in which lmms-eval looks for it."""


def letter_anywhere(row: ResultRow) -> str:
    """Read the only letter among the words, else the only option whose text is inside, else the likeliest letter.

    Options that the question does not have are the text `nan`, as in the data set of lmms-eval.
    """
    reply, options = said(row).strip(), row["meta"].get("options", {})
    words = reply.split()
    for number, form in enumerate(FORMS):
        named = [letter for letter in "ABCDE" if form.format(letter) in words]
        article = number == 0 and "A" in words and len(words) > 3
        if len(named) == 1 and not article:
            return named[0]
    choices = {letter: str(options.get(letter, "nan")) for letter in "ABCD"}
    return str(only_text(reply, choices, "ABCD") or likeliest_letter(reply, "ABCD"))


PHRASES = (
    *(
        f"{the}{which} {noun} is"
        for noun in ("answer", "option")
        for which in ("correct", "best")
        for the in ("the ", "")
    ),
    *("the answer is", "answer is", "my answer is", "the correct choice is", "correct choice is", "the choice is"),
    *("choice is", "my choice is", "i choose", "i select", "i pick"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
"""Words behind which lmms-eval looks for a letter."""

RANKS = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))


def likeliest_letter(reply: str, letters: str) -> str:
    """Return the letter in the best place of a reply, the last of several; "" without any.

    Places from the best on: at the beginning, at the end, behind `answer is` and the like, in parentheses, before a
    period, a colon, a parenthesis, a space; where there is none of them, anywhere.
    """
    reply = reply.strip()
    for mark in ",.!?;:'\"":
        reply = reply.strip(mark)
    text = f" {reply} "
    reply = reply.strip()
    found = [(rank, text.rfind(form.format(x)), x) for form, rank in RANKS for x in letters]
    for phrase in PHRASES:
        if (start := text.lower().find(phrase)) >= 0:
            found += [(7, text.find(x, start + len(phrase)), x) for x in letters]
    found += [(10, 0, x) for x in letters if reply[:1] == x and not reply[1:2].isalpha()]
    found += [(9, len(text), x) for x in letters if reply[-1:] == x and not reply[-2:-1].isalpha()]
    there = [place for place in found if place[1] >= 0] or [(0, text.rfind(x), x) for x in letters if x in text]
    return max(there)[2] if there else ""


def circular(benchmark: Benchmark, rows: list[ResultRow], words: list[Any]) -> list[Metric]:
    """Return the share of questions with every rotated copy right."""
    return whole_sets(benchmark, rows, "upstream")[:1]


HARNESS_RULES: dict[str, tuple[HarnessRule, ...]] = {
    "pope_parse": (
        HarnessRule(
            LMMS,
            "F1 over all questions; a reply counts when it is yes or no and nothing else",
            whole_reply,
            partial(f1_of_all, unread_is_no=False),
        ),
        HarnessRule(
            KIT,
            "F1 over all questions; a reply counts when just one of yes and no is among its words",
            only_word,
            partial(f1_of_all, unread_is_no=True),
        ),
    ),
    "mme_reply": (
        HarnessRule(LMMS, "yes or no in the first four characters without periods; y and n alone", beginning, points),
        HarnessRule(KIT, "just one of yes and no is among the words", only_word, points),
    ),
    "relaxed_accuracy": (
        HarnessRule(
            LMMS, "5 % of the reference, reply with its white space", partial(near_reference, stripped=False), by_size
        ),
        HarnessRule(KIT, "5 % of the reference", partial(near_reference, stripped=True), by_size),
    ),
    "vlmevalkit_can_infer": (
        HarnessRule(
            LMMS,
            "without a judge (mmbench_en_dev_static): a letter, the text of an option, or the likeliest letter",
            letter_anywhere,
            circular,
        ),
        HarnessRule(KIT, "without a judge: a letter near the end, or the text of an option", letter_near_end, circular),
    ),
}
"""Scorer of a benchmark table -> the rules of the harnesses for the same replies."""
