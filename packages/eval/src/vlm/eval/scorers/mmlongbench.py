"""MMLongBench: answers, yes or no, counts, letters, labels, answers about documents, and judged summaries.

As published, the start of the answer (`Answer:`, `label:`) is put before each reply, and the better score of the whole
and of what follows the start counts. Source: EdinburghNLP/MMLongBench, data.py, utils.py and scripts/eval_gpt4_summ.py.
"""

import json
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from vlm.eval.benchmark import Benchmark
from vlm.eval.measures.letters import read_label
from vlm.eval.measures.reply import answer_text, says
from vlm.eval.measures.rows import Answers, Metric, Parts, ResultRow, bounds_of, by_group
from vlm.eval.measures.short import close_number, same_answer, short_answers
from vlm.eval.measures.stats import Array, ratio
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.mmniah import mmniah_text, read_counts
from vlm.eval.scorers.scorer import Scorer, takes
from vlm.eval.scorers.yesno import yes_or_no

UNITS = ("kg", "meters", "acres", "minutes", "miles", "mile", "feet", "million", "thousand", "billion", "mm", "m")
"""Endings that answers about documents lose, one after the other, in this order."""

EXACT = (
    r"https://",
    r".*\.(py|ipynb)$",
    r"^page",
    r"^\d+(-\d+|\s\d+)?$",
    r"(a\.m\.|p\.m\.)",
    r"^\d{4}[-/\s]\d{1,2}[-/\s]\d{1,2}$",
    r"^\d{1,2}[-/\s]\d{1,2}[-/\s]\d{2,4}$",
    r"^\d{4}[-/\s]\d{1,2}$",
    r"^[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}$",
)
"""References that must be in the reply as they are: addresses, file names, pages, times, dates."""

NUMBER = re.compile(r"-?\d+(?:\.\d*)?|-?\.\d+")
SCALE = re.compile(r"(?<=\d)\s*(?:thousand|million|billion)s?\b", re.IGNORECASE)
"""Words after a number that either side may leave out: the question names them."""

TOLERANCE = 0.01
"""Share by which a number that is no whole number may differ."""


def _normal(text: str, *, marks: bool = False) -> str:
    """Return a text in lower case, without articles and, unless `marks` are kept, punctuation."""
    text = text.lower()
    if not marks:
        text = text.translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _after(response: str, start: str) -> str:
    """Return a reply without the start of the answer, which some models say again."""
    return re.sub(f"^{re.escape(start)}", "", response.strip(), flags=re.IGNORECASE).strip()


def _best(score: Callable[[str], float], response: str, start: str) -> float:
    """Return the better score of the start with the reply, and of what follows the start."""
    return max(float(score(start + response)), float(score(_after(response, start))))


def mmlongbench_entity(answer: Sequence[str], response: str, *, compat: Compat = "upstream") -> float:
    """Return 1 iff an accepted answer is in the reply, without case, punctuation and articles (substring exact match).

    upstream: also within a word, and an answer of punctuation alone is in every reply. fixed: as whole words that are
    not denied.
    """
    if compat == "fixed":
        return float(any(mmniah_text(gold, response, compat="fixed") for gold in answer))
    return _best(lambda said: any(_normal(gold) in _normal(said) for gold in answer), response, "Answer:")


def mmlongbench_binary(answer: str, response: str, guess: int = 0, *, compat: Compat = "upstream") -> float:
    """Return 1 iff the last yes or no of the reply is the answer.

    Args:
        answer: Yes or no.
        response: The reply.
        guess: upstream: what a reply without either counts as, 1 is yes. fixed: such a reply is wrong.
        compat: upstream takes the last word of the two; fixed reads the reply as a person does.
    """
    if compat == "fixed":
        return float(yes_or_no(response) == answer.strip(" .").lower())
    said, gold = _last_yes_no(f"Answer:{response}"), _last_yes_no(answer)
    return float((guess if said == -1 else said) == gold)


def _last_yes_no(text: str) -> int:
    text = _normal(text, marks=True)
    found = re.findall(r"\b(?:yes|no)\b", text)
    if found:
        return int(found[-1] == "yes")
    return int(text) if text.isdigit() else -1


def mmlongbench_counting(answer: Sequence[int], response: str, *, compat: Compat = "upstream") -> float:
    """Return 1 iff the counts of the reply have the sum of the reference (the published `soft_acc`).

    upstream: the last list, else all whole numbers of the reply; what is no number in a list is left out. fixed: the
    reply is a list of counts.

    Raises:
        ValueError: upstream, a number of more than 4,300 digits.
    """
    if compat == "fixed":
        counts = read_counts(response)
        known = [count for count in counts or () if count is not None]
        return float(counts is not None and len(known) == len(counts) > 0 and sum(known) == sum(answer))
    return _best(lambda said: sum(_last_list(said)) == sum(answer), response, "Answer:")


def _last_list(text: str) -> list[int]:
    text = _normal(text, marks=True)
    for form in (r"\[[\d\s,]+\]", r"\[.*?\]"):
        if found := re.findall(form, text, re.DOTALL):
            try:
                return [count for entry in json.loads(found[-1]) if (count := _whole(entry)) is not None]
            except json.JSONDecodeError:
                continue
    return [int(digits) for digits in re.findall(r"\d+", text)]


def _whole(entry: Any) -> int | None:
    try:
        return int(entry)
    except (TypeError, ValueError, OverflowError):
        return None


def mmlongbench_choice(answer: int, response: str, n_choices: int = 10, *, compat: Compat = "upstream") -> float:
    """Return 1 iff the reply names the option of that index (0 = A).

    upstream: after `answer is`, else after `Answer:`, else the last capital A to J that stands alone. As the start of
    the answer is put before the reply, `Because` is B. fixed: the label that a reader finds.
    """
    if compat == "fixed":
        return float(read_label(response, [""] * n_choices) == chr(65 + answer))
    return _best(lambda said: _letter(said) == answer, response, "Answer:")


def _letter(text: str) -> int:
    text = " ".join(text.split())
    for form in (r"answer is \(?([A-J])\)?", r"[aA]nswer:\s*([A-J])"):
        if match := re.search(form, text):
            return ord(match[1]) - 65
    alone = re.findall(r"\b[A-J]\b", text)
    return ord(alone[-1]) - 65 if alone else -1


def mmlongbench_label(answer: int, response: str, *, compat: Compat = "upstream") -> float:
    """Return 1 iff the reply gives the number of the class.

    upstream: the digits after the first `label:`, else the last number of the reply, whatever it counts. fixed: the
    whole number after the last `label:`, else the short answer of the reply.
    """
    if compat == "fixed":
        named = re.findall(r"label\s*[:：]\s*(\d+)(?![\w]|\.\d)", answer_text(response), re.IGNORECASE)
        return float(int(named[-1]) == answer if named else same_answer(response, str(answer)))
    return _best(lambda said: _number(said) == answer, response, "label:")


def _number(text: str) -> int:
    text = " ".join(text.split())
    if match := re.search(r"label:\s*(\d+)", text, re.IGNORECASE):
        return int(match[1])
    found = re.findall(r"\b\d+\b", text) or re.findall(r"\d+", text)[:1]
    return int(found[-1]) if found else -1


def mmlongbench_document(answer: str, response: str, answer_format: str, *, compat: Compat = "upstream") -> float:
    """Score an answer about a document by the kind of its reference, 0 to 1.

    Whole numbers must be equal and others within 1 % (a percentage also as a share), texts are compared by F1 of their
    words, addresses and dates must be in the reply as they are; of a list, the mean of its numbers and of its texts
    together.

    upstream: any number of the reply may be the one. fixed: only the number of a short answer, and the F1 of the short
    answer that has the best; a list is scored as upstream, without reasoning and markup.

    Args:
        answer: The reference; a list as JSON.
        response: The reply.
        answer_format: Integer, Float, String, None (not answerable) or List.
        compat: The published rule, or its correction.

    Raises:
        ValueError: A reference that is not of its kind. KeyError: Another kind.
    """
    if compat == "upstream":
        return _document(answer, _after(response, "Answer:"), answer_format)
    if answer_format == "List":
        return _document(answer, answer_text(response), answer_format)
    if answer_format in ("Integer", "Float"):
        said, gold = (SCALE.sub("", text) for text in (response, answer))
        close = close_number(said, gold, 0.0 if answer_format == "Integer" else TOLERANCE)
        return float(same_answer(response, answer) if close is None else close)
    if _is_exact(answer):
        return float(says(answer_text(response).lower(), answer.lower()))
    return max((_word_f1(one, answer) for one in short_answers(response)), default=0.0)


def _document(gold: Any, said: str, kind: str) -> float:
    if kind == "Integer":
        wanted = float(_bare(str(gold)))
        if wanted != int(wanted):
            raise ValueError(f"{gold!r} is no whole number")
        return float(any(wanted == number for number in _numbers(_bare(said))))
    if kind == "Float":
        wanted = float(_bare(str(gold)))
        forms = (wanted / 100, wanted, wanted * 100)
        numbers = _numbers(_bare(said))
        return float(any(math.isclose(form, number, rel_tol=TOLERANCE) for number in numbers for form in forms))
    if kind in ("String", "None"):
        return float(gold in said) if _is_exact(gold) else _word_f1(said, gold)
    if kind != "List":
        raise KeyError(f"answers of the kind {kind}")
    entries = json.loads(gold)
    texts = [one for one in entries if isinstance(one, str) and _kind(one) == "String" and not _is_exact(one)]
    if merged := " ".join(texts).strip():
        entries = [merged, *(one for one in entries if one not in texts)]
    return sum(_document(one, said, _kind(one)) for one in entries) / len(entries)


def _kind(entry: Any) -> str:
    """Return the kind of an entry of a list; a text may hold a number."""
    if isinstance(entry, int | float):
        return "Integer" if isinstance(entry, int) else "Float"
    try:
        value = float(_bare(str(entry)))
        return "Integer" if value == int(value) and "%" not in entry else "Float"
    except (TypeError, ValueError, OverflowError):
        return "String"


def _bare(text: str) -> str:
    """Return a text in lower case without thousands marks, units, quotes, currency and percent signs around it."""
    text = text.lower().strip().replace(",", "")
    for unit in UNITS:
        text = re.sub(f"{unit}$", "", text).strip()
    text = re.sub(r"^['\"]|['\"]$", "", text).strip()
    for mark in "$£%":
        text = text.strip(mark).strip()
    return text


def _numbers(text: str) -> list[float]:
    return [number for digits in NUMBER.findall(text.replace(",", "")) if math.isfinite(number := float(digits))]


def _is_exact(text: str) -> bool:
    return any(re.search(form, text) for form in EXACT)


def _word_f1(said: str, gold: str) -> float:
    found, wanted = _normal(said).split(), _normal(gold).split()
    same = sum((Counter(found) & Counter(wanted)).values())
    if not same:
        return 0.0
    precision, recall = same / len(found), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


JUDGED = re.compile(r"fluency ([01]), recall (\d+)/(\d+), precision (\d+)/(\d+)")


def mmlongbench_fluency_f1(reply: str, *, compat: Compat = "upstream") -> float:
    """Return fluency times the F1 of recall and precision of a judged summary. The same in both modes.

    >>> mmlongbench_fluency_f1("fluency 1, recall 2/4, precision 3/3")
    0.6666666666666666

    Raises:
        ValueError: The text is not what `vlm.eval.backends.judge` makes of a judge's three answers.
    """
    found = JUDGED.fullmatch(reply)
    if found is None:
        raise ValueError(f"{reply[:60]!r} is no verdict on a summary")
    fluency, held, points, supported, sentences = map(int, found.groups())
    recall = held / points if points else 0.0
    precision = supported / sentences if sentences else 0.0
    return fluency * 2 * recall * precision / (recall + precision) if recall + precision else 0.0


def mmlongbench(benchmark: Benchmark, rows: Sequence[ResultRow], compat: Compat) -> list[Metric]:
    """Return the mean of the table's averages, the headline first, and of each set.

    upstream: an accuracy of yes-or-no questions below one half is shown as one minus it, as in the published tables.
    """
    groups, parts, each = by_group(rows), Parts(rows, compat), []
    for number, (name, about) in enumerate(benchmark.options["sets"].items()):
        answers = Answers(groups.get(name, []), compat)
        if not answers.rows:
            each.append(answers.metric(name, None))
            continue
        flips = about["form"] == "haystack" and compat == "upstream"
        statistic = partial(_accuracy, flips=flips)
        columns = np.stack([answers.values, np.ones_like(answers.values)], axis=1)
        value, samples = float(statistic(columns.sum(axis=0))), answers.bootstrap(columns, statistic, seed=number)
        parts.known[name] = (value, samples)
        note = "below one half: one minus it, as published" if flips and answers.values.mean() < 0.5 else ""
        each.append(answers.metric(name, value, bounds_of(samples, value, answers.n_clusters), note))
    averages = [parts.average(name, over) for name, over in benchmark.options["averages"].items()]
    return [*averages[::-1], *each]


def _accuracy(totals: Array, *, flips: bool) -> Array:
    mean: Array = ratio(totals)
    return np.maximum(mean, 1 - mean) if flips else mean


SCORERS = {
    "mmlongbench_binary": Scorer(mmlongbench_binary, takes("response", "answer", guess="guess")),
    "mmlongbench_choice": Scorer(mmlongbench_choice, takes("response", "answer", n_choices="n_choices")),
    "mmlongbench_counting": Scorer(mmlongbench_counting, takes("response", "answer")),
    "mmlongbench_document": Scorer(mmlongbench_document, takes("response", "answer", answer_format="answer_format")),
    "mmlongbench_entity": Scorer(mmlongbench_entity, takes("response", "answer")),
    "mmlongbench_fluency_f1": Scorer(mmlongbench_fluency_f1, takes("reply"), judged="reply", needs_judge=True),
    "mmlongbench_label": Scorer(mmlongbench_label, takes("response", "answer")),
}
AGGREGATES = {"mmlongbench": mmlongbench}
