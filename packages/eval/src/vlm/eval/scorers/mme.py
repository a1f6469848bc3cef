"""MME: yes or no from replies, and the scores of its 14 tasks. Source: the published evaluators"""

import re
from collections.abc import Mapping, Sequence

from vlm.core.errors import DataError
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.yesno import pope_parse

TASKS = {
    "perception": "existence count position color posters celebrity scene landmark artwork OCR",
    "cognition": "commonsense_reasoning numerical_calculation text_translation code_reasoning",
}
PERFECT = 200.0
"""Points of a task with every reply right: 100 for the replies, 100 for the images."""

WORDS = {"不是": "No", "是": "Yes", "否": "No"}
CHINESE = re.compile("[\u4e00-\u9fa5]")


def mme_post_processing(response: str, *, compat: Compat = "upstream") -> str:
    """The reply as it is written to the result file: no line breaks, lower case, Chinese yes and no and true and false
    translated, other Chinese characters removed.

    upstream: the words around a line break grow together. fixed: it becomes a space.
    """
    response = response.replace("\n", " " if compat == "fixed" else "")
    for word, english in WORDS.items():
        response = response.replace(word, english)
    return CHINESE.sub("", response.lower().replace("true", "yes").replace("false", "no"))


def mme_parse(pred_ans: str, *, compat: Compat = "upstream") -> str:
    """`yes`, `no` or `other`.

    upstream: whichever of yes and no is inside the first four characters (`snow` is no). fixed: by whole words, other
    when the reply says neither or both.
    """
    if compat == "fixed":
        word = pope_parse(pred_ans, compat="fixed")
        return "other" if word == "unknown" else word
    start = pred_ans.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def mme_reply(response: str, *, compat: Compat = "upstream") -> str:
    """`yes`, `no` or `other` from a raw reply: `mme_post_processing`, then `mme_parse`."""
    return mme_parse(mme_post_processing(response, compat=compat), compat=compat)


def mme_score(files: Mapping[str, Sequence[Sequence[str]]], *, compat: Compat = "upstream") -> dict[str, float]:
    """Points per task (0 to 200), `perception_total` and `cognition_total`, from rows of image, question, yes or no,
    and reply; two consecutive rows are one image. Task points: 100 times the share of right replies, plus 100 times
    the share of images with both right.

    upstream: a task that is not given counts as perfect (as the golden values were made), and a row that does not read
    as one line of four columns is skipped. fixed: only given tasks count, a task that is not MME's is refused.

    Raises:
        AssertionError: a row without its partner, or a reference other than yes or no (as published).
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
    """Points of one task, 0 to 200; see `mme_score`."""
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
