"""RefCOCO, RefCOCO+, RefCOCOg: boxes from replies, and their overlap with the reference box.

`gt_bbox` is (left, top, right, bottom) in pixels, `hw` is (height, width). The overlap `iou` is 0 to 1, and a box is
right from one half on. Arithmetic is in float32, as published.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from vlm.eval.loaders.common import Item
from vlm.eval.measures.reply import after_reasoning
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.scorer import Reader, Reading, Scorer, takes

BoxArray = npt.NDArray[np.float32]


class BoxScore(TypedDict):
    """The overlap of a box with the reference, and 1 if it is right, else 0."""

    iou: float
    correct: int


class RecScore(TypedDict):
    """The box that lmms-eval read, its overlap with the reference, and 1 if it is right, else 0."""

    pred: Sequence[float]
    iou: float
    acc05: int


BOX = re.compile(r"\[++([^,\n]*+),([^,\n]*+),([^,\n]*+),([^\]\n]*+)\]")
"""Possessive quantifiers: a reply of nothing but brackets must not take forever."""

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)"
FRACTIONS = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\s*\]")
THRESHOLD = 0.5

FINAL = re.compile(r"answer(?: is)?\s*[:：]?", re.IGNORECASE)
OTHER_FORMS = (
    (re.compile(r"\([^()]*\d[^()]*,[^()]*\d[^()]*\)"), "points in parentheses"),
    (re.compile(r"<(?:loc|box|bbox|\|box)[^>]*>", re.IGNORECASE), "a box in tags"),
    (re.compile(r"[\"'](?:x1|xmin|left|x|bbox)[\"']?\s*:", re.IGNORECASE), "named numbers"),
    (re.compile(r"\[\s*-?[\d.]+(?:\s+-?[\d.]+){3}\s*\]"), "numbers without commas"),
    (re.compile(r"\[[^\[\]]*[\d.]\s*(?:%|px)"), "numbers with a unit"),
    (re.compile(r"(?:[\d.]+\s*,\s*){3}[\d.]+"), "numbers without brackets"),
    (re.compile(r"\[[^\[\]]*\d[^\[\]]*\]"), "another number of numbers than four"),
)
"""Boxes in forms that the published rules do not read, and what to call them."""


def last_box(reply: str) -> str:
    """Return what follows the reasoning of a reply and, where a box comes after it, the last `answer:`."""
    said = after_reasoning(reply) or ""
    tails = [said[match.end() :] for match in FINAL.finditer(said)]
    return tails[-1] if tails and BOX.search(tails[-1]) else said


def read_form(reply: str, form: re.Pattern[str] = BOX) -> str:
    """Return the box of a reply as it is written, else in words why there is none."""
    said = last_box(reply)
    match = form.search(said)
    if match and all(re.fullmatch(r"\s*\[*\s*-?(?:\d+\.?\d*|\.\d+)\s*", field) for field in match.groups()):
        return match[0]
    names = (name for shape, name in OTHER_FORMS if shape.search(said))
    return f"no box [x1, y1, x2, y2]: {next(names, 'no numbers')}"


def box_reader(score: str, form: re.Pattern[str] = BOX) -> Reader:
    """Take the value from the key `score`; in fixed mode say which box was read, or why none was."""

    def reader(item: Item, completion: str, result: Any, compat: Compat) -> Reading:
        form_read = read_form(completion, form) if compat == "fixed" else ""
        read = form_read if form_read.startswith("no box ") else completion.strip()
        return Reading(read, float(result[score]))

    return reader


def read_box(reply: str) -> BoxArray:
    """Read the first four comma-separated fields in brackets as fractions, float32 [4]; zeros unless all are numbers.

    Four numbers that add up to 4 or more are thousandths: [1, 1, 1, 1] is, [0, 0, 3, 0.99] is not.
    """
    match = BOX.search(reply)
    try:
        fields = [float(field) for field in match.groups()] if match else [0.0] * 4
    except ValueError:
        fields = [0.0] * 4
    with np.errstate(all="ignore"):
        box = np.array(fields).astype(np.float32)
        return box / np.float32(1000) if box.sum() >= 4 else box


def _scored(box: BoxArray, gt_bbox: Sequence[float], compat: Compat) -> BoxScore:
    gold = np.array(gt_bbox, np.float32)
    with np.errstate(all="ignore"):
        width, height = np.maximum(np.minimum(box[2:], gold[2:]) - np.maximum(box[:2], gold[:2]), np.float32(0))
        areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, gold)]
        iou = float(width * height / (areas[0] + areas[1] - width * height))
    if compat == "fixed" and math.isnan(iou):
        iou = 0.0
    return {"iou": iou, "correct": int(iou >= THRESHOLD)}


def refcoco_internvl(
    answer: str, gt_bbox: Sequence[float], hw: Sequence[int], *, compat: Compat = "upstream"
) -> BoxScore:
    """Return `iou` and `correct` of a box in fractions of width and height. Source: InternVL.

    fixed: a box of no numbers (NaN) overlaps nothing. The scale is that of the system in both modes.
    """
    with np.errstate(all="ignore"):
        answer = last_box(answer) if compat == "fixed" else answer
        box = read_box(answer) * np.array([hw[1], hw[0], hw[1], hw[0]], np.float32)
    return _scored(box, gt_bbox, compat)


def refcoco_convllava(
    answer: str, gt_bbox: Sequence[float], hw: Sequence[int], *, compat: Compat = "upstream"
) -> BoxScore:
    """Return `iou` and `correct` of a box in fractions of the padded square. Source: ConvLLaVA.

    fixed: a box of no numbers (NaN) overlaps nothing. The scale is that of the system in both modes.
    """
    side = max(hw)
    left, top = (side - hw[1]) // 2, (side - hw[0]) // 2
    with np.errstate(all="ignore"):
        answer = last_box(answer) if compat == "fixed" else answer
        box = read_box(answer) * np.float32(side) - np.array([left, top, left, top], np.float32)
    return _scored(box, gt_bbox, compat)


def refcoco_lmms_rec(
    answer: str, gt_bbox: Sequence[float], hw: Sequence[int], *, compat: Compat = "upstream"
) -> RecScore:
    """Return `pred`, `iou` and `acc05` of a box in fractions; no other scale is understood. Source: lmms-eval.

    upstream: reversed corners give a negative area. fixed: two boxes without area overlap nothing.

    Raises:
        ZeroDivisionError: upstream, when the areas cancel (as published).
    """
    match = FRACTIONS.search(last_box(answer) if compat == "fixed" else answer)
    pred = [float(field) for field in match.groups()] if match else [0] * 4
    gold = [value / size for value, size in zip(gt_bbox, [hw[1], hw[0]] * 2, strict=True)]
    width = max(0.0, min(pred[2], gold[2]) - max(pred[0], gold[0]))
    shared = width * max(0.0, min(pred[3], gold[3]) - max(pred[1], gold[1]))
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (gold, pred)) - shared
    iou = 0.0 if compat == "fixed" and union == 0 else shared / union
    return {"pred": pred, "iou": iou, "acc05": int(iou >= THRESHOLD)}


SCORERS = {
    "refcoco_convllava": Scorer(refcoco_convllava, takes("answer", "gt_bbox", hw="hw"), box_reader("correct")),
    "refcoco_internvl": Scorer(refcoco_internvl, takes("answer", "gt_bbox", hw="hw"), box_reader("correct")),
    "refcoco_lmms_rec": Scorer(refcoco_lmms_rec, takes("answer", "gt_bbox", hw="hw"), box_reader("acc05", FRACTIONS)),
}
