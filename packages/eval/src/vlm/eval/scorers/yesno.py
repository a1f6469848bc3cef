"""Yes or no from replies, and POPE's F1 of three categories."""

import math
import re
from collections.abc import Sequence

import numpy as np

from vlm.eval.benchmark import Benchmark
from vlm.eval.measures.reply import answer_text, ends
from vlm.eval.measures.rows import Answers, Metric, ResultRow, bounds_of, plain
from vlm.eval.measures.stats import Array, Interval, wilson
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.scorer import Scorer, as_answer, takes


def pope_parse(text: str, *, compat: Compat = "upstream") -> str:
    """Read a reply as yes or no. Source: the published evaluators.

    upstream: "no" iff one of the space-separated words before the first period is exactly No, no or not, else "yes"; an
    empty reply is a yes. fixed: `yes_or_no`.
    """
    if compat == "upstream":
        words = text.split(".")[0].replace(",", "").split(" ")
        return "no" if {"No", "no", "not"} & set(words) else "yes"
    return yes_or_no(text)


ANNOUNCED = re.compile(r"(?:answer|conclusion)(?: is| would be|:| -|=)+\s*[\"'“(]*(yes|no)\b(?! (?:and|or) )")
CHANGED = re.compile(r"(?:^|[.!?;,]\s*|\bno,? )(?:wait|actually|correction|on second thought|scratch that)\b[,.:!\s]*")
IDIOM = re.compile(
    r"\bno (?:doubt|problem|worries|matter|longer only)\b|\bnot only\b|\bif not\b|\bor not\b|\bwhether\b.*?(?=[,.;]|$)"
)
UNSURE = re.compile(
    r"not (?:\w+ )?(?:sure|certain|clear|possible|enough|able)|\bunsure|(?:don't|do not|didn't|did not) know"
    r"|(?:can't|cannot|can not|couldn't|could not|unable to)(?: \w+)? (?:tell|determine|say(?: (?:yes|no)\b)?"
    r"|see (?:the|an) image|view|answer|judge|decide|be determined|identify|help|assist)"
    r"|n't (?:sure|certain|clear|possible|enough|help|view)"
    r"|no (?:way to|information|image|picture|idea|answer)|hard to (?:say|tell)|unclear|impossible to"
)
BOTH = re.compile(r"\byes\b,?\s*(?:and|n?or|/|&)\s*\bno\b|\bno\b,?\s*(?:and|n?or|/|&)\s*\byes\b")
CHINESE_NO = re.compile(r"不是|没有|沒有|否|不对|不存在|错误|^不|^没")
CHINESE_YES = re.compile(r"是的|是|有|对|正确|存在")
QUESTION = re.compile(r"[^.!?]{1,300}\?")
OPPOSITE = re.compile(
    r"(?:\bnot|\b(?:cannot|can't|couldn't) be|\b(?P<verb>(?!ca|could)\w+)n't)"
    r"(?: (?:just|simply|definitely|say|think|believe|that|it|is|it's|would|should|answer|be|an?|the answer))*"
    r"\s+[\"'“(]*(?P<word>yes|no)\b(?! (?!but|and|to|in|because)\w)"
)
"""A denied yes or no, which is the other one."""

AFFIRMED = ("yes", "yeah", "yep", "yup")
DENIED = ("no", "nope", "nah")


def yes_or_no(reply: str, truth: bool = False) -> str:
    """Read a reply as "yes" or "no" as a person would, "unknown" when it says neither, both or that it cannot tell.

    An announced answer wins (the last one), then what follows a change of mind, then the first word, then the words;
    questions in the reply count only where nothing else says it. A denied yes is a no.
    A sentence without yes, no and `not` is unknown: only the question could tell what it affirms.

    Args:
        reply: The raw reply.
        truth: Whether true and false mean yes and no.
    """
    said = " ".join(ends(answer_text(reply)).lower().replace("’", "'").split())
    if truth:
        said = re.sub(r"\bfalse\b", "no", re.sub(r"\btrue\b", "yes", said))
    told = QUESTION.sub(" ", said).strip()
    found = _read(told) if told != said else "unknown"
    return _read(said) if found == "unknown" else found


def _read(said: str) -> str:
    if BOTH.search(said):
        return "unknown"
    said = OPPOSITE.sub(_opposite, said)
    if announced := ANNOUNCED.findall(said):
        return str(announced[-1])
    said = IDIOM.sub(" ", said)
    changed = [said[match.end() :] for match in CHANGED.finditer(said)]
    for tail in reversed(changed):
        if (found := _by_words(tail)) != "unknown":
            return found
    return _by_words(said)


def _opposite(match: re.Match[str]) -> str:
    word = "no" if match["word"] == "yes" else "yes"
    return f"{match['verb'] or ''} {word}"


def _by_words(said: str) -> str:
    words = re.findall(r"[a-z']+", said)
    if words and words[0] in AFFIRMED + DENIED and not UNSURE.match(said):
        return "yes" if words[0] in AFFIRMED else "no"
    unsure = UNSURE.search(said)
    words = re.findall(r"[a-z']+", UNSURE.sub(" ", said))
    yes = any(word in AFFIRMED for word in words)
    denied = any(word in DENIED for word in words)
    no = denied or (not unsure and any(word in ("not", "cannot") or word.endswith("n't") for word in words))
    if yes != no:
        return "yes" if yes else "no"
    if not (yes or no) and (chinese := re.sub(r"[^\u4e00-\u9fff]", "", said)):
        return _by_chinese(chinese)
    return "unknown"


def _by_chinese(said: str) -> str:
    said = re.sub(r"是否|有没有|是不是|无法.*|不确定.*|不知道.*|不清楚.*|看不.*", "", said)
    if CHINESE_NO.search(said):
        return "no"
    return "yes" if CHINESE_YES.search(said) else "unknown"


def _pope_counts(answers: Answers) -> Array:
    """Return TP, FP, TN, FN as 0 or 1, [rows, 4], from labels and scores: `unknown` is wrong whatever the label."""
    right = answers.values == 1.0
    yes = np.array([row["gold"] == "yes" for row in answers.rows], dtype=bool)
    return np.stack([right & yes, ~right & ~yes, right & ~yes, ~right & yes], axis=1).astype(float)


def _f1(totals: Array) -> Array:
    """Return F1 of counts, [..., 4] -> [...]; NaN without positives in labels and replies."""
    tp, fp, fn = totals[..., 0], totals[..., 1], totals[..., 3]
    size = 2 * tp + fp + fn
    found: Array = np.divide(2 * tp, size, out=np.full(size.shape, np.nan), where=size > 0)
    return found


def pope(benchmark: Benchmark, rows: Sequence[ResultRow], compat: Compat) -> list[Metric]:
    """Return the mean F1 of the categories, then F1, accuracy, precision, recall and yes ratio of each.

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
            bounds = bounds_of(part.bootstrap(counts, _f1, seed=0), f1, part.n_clusters)
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

        def statistic(totals: Array) -> Array:
            mean_f1: Array = _f1(totals.reshape(-1, len(groups), 4)).mean(axis=-1)
            return mean_f1

        value = float(np.mean([f1 for f1 in f1s if f1 is not None]))
        bounds = bounds_of(answers.bootstrap(columns, statistic, seed=0), value, answers.n_clusters)
        headline = answers.metric("F1", value, bounds)
    return [headline, *plain(rows, compat)[:1], *each]


SCORERS = {"pope_parse": Scorer(pope_parse, takes("text"), as_answer)}
AGGREGATES = {"pope": pope}
