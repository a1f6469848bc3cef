"""MMMU: letters and open answers from replies, and accuracies by subject. Source: the published evaluators"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from string import ascii_uppercase
from typing import Any

from vlm.eval.measures.text import Compat
from vlm.eval.scorers.choice import option_post_process, read_letter

RANDOM = "__RANDOM__"
"""Stands for the published parser's random choice among the options."""

DOMAINS = {
    "Art and Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health and Medicine": """Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy
        Public_Health""",
    "Humanities and Social Science": "History Literature Sociology Psychology",
    "Tech and Engineering": """Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power
        Materials Mechanical_Engineering""",
}
CUES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
TRIVIAL = set(":,.!?;'")
NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # thousands
    re.compile(r"-?\d+(?:\.\d+)?e[+-]?\d+"),
    re.compile(r"-?(?:\d*\.\d+|\d+\b)(?!e[+-]?\d)(?![,\d])"),
)
LETTERS = dict.fromkeys(ascii_uppercase[:13], "")


def mmmu_multi_choice_parse(
    response: str, all_choices: Sequence[str], index2ans: Mapping[str, str], *, compat: Compat = "upstream"
) -> str:
    """The letter of the last mention: `(A)`, else ` A `, else, in replies of more than five words, an option's text.

    Shipped with MMMU, not called by its published scripts. Nothing mentioned: upstream `RANDOM`; fixed: `read_letter`,
    which may be "".
    """
    reply = response
    for mark in ",.!?;:'":
        reply = reply.strip(mark)
    reply = f" {reply} "
    for form in ("({})", " {} "):
        places = {letter: reply.rfind(form.format(letter)) for letter in all_choices}
        if max(places.values(), default=-1) >= 0:
            return max(places, key=places.__getitem__)
    if len(reply.split()) > 5:
        places = {letter: reply.lower().rfind(text.lower()) for letter, text in index2ans.items()}
        if max(places.values(), default=-1) >= 0:
            return max(places, key=places.__getitem__)
    return RANDOM if compat == "upstream" else read_letter(response, index2ans)


def mmmu_open_parse(response: str, *, compat: Compat = "upstream") -> list[float | str]:
    """What a reply to an open question may say: numbers (two decimals), then texts, both by spelling, none twice.

    Of each line the shortest tail after a cue word, and every number in those tails; without any, of the whole reply.
    The same in both modes (`.5` loses its point to the clean-up of final periods).
    """
    reply = response.strip().strip(".").lower()
    lines = reply.split("\n")
    tails = []
    for i, line in enumerate(lines):
        cues = (*CUES, "=") if i == len(lines) - 1 else CUES
        tail = ""
        for after in (line.split(cue)[-1].strip() for cue in cues if cue in line):
            tail = after if not tail or len(after) < len(tail) else tail
        if tail and tail not in TRIVIAL:
            tails.append(tail)
    texts = tails or [reply]
    numbers = chain.from_iterable(pattern.findall(text) for text in texts for pattern in NUMBERS)
    found = set(chain.from_iterable(_normal(part) for part in chain(texts, numbers)))
    return sorted(found, key=lambda part: (isinstance(part, str), str(part)))


def _normal(text: str) -> list[float | str]:
    """A number to two decimals, else the text in lower case; one letter is padded, or it would be in every word."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def mmmu_open_eval(gold: str | Sequence[str], response: str, *, compat: Compat = "upstream") -> bool:
    """Whether a reference equals a number of the reply or is inside one of its texts; the same in both modes."""
    answers = [part for answer in ([gold] if isinstance(gold, str) else gold) for part in _normal(answer)]
    for part in mmmu_open_parse(response):
        if isinstance(part, float):
            if part in answers:
                return True
        elif any(isinstance(answer, str) and answer in part for answer in answers):
            return True
    return False


def mmmu_item(
    response: str,
    question_type: str,
    ground_truth: str | list[str],
    options: Mapping[str, str],
    *,
    compat: Compat = "upstream",
) -> dict[str, Any]:
    """`extracted` and `score` (0 or 1) of one raw reply, as the published scripts chain their steps: a letter by
    `option_post_process`, all but multiple choice by `mmmu_open_eval`.

    Raises:
        IndexError: upstream, for an empty reply to options (as published).
    """
    if question_type != "multiple-choice":
        return {"extracted": response.strip(), "score": int(mmmu_open_eval(ground_truth, response))}
    letter = option_post_process(response, options, compat=compat)
    right = letter in ground_truth if isinstance(ground_truth, list) else letter == ground_truth
    return {"extracted": letter, "score": int(right)}


def mmmu_main_eval(
    outputs: Mapping[str, str], answers: Mapping[str, Mapping[str, Any]], *, compat: Compat = "upstream"
) -> dict[str, dict[str, float]]:
    """`num` and `acc` (0..1, three decimals) per subject, per domain (`Overall-...`) and `Overall`, by id.

    Ids are like `validation_Art_Theory_1`; `answers` holds `question_type` and `ground_truth` (one or a list). A letter
    must be equal, all else goes through `mmmu_open_eval`. upstream: only ids in `outputs` count. fixed: every id of
    `answers` counts, a missing or empty reply is wrong, and letters are read by `read_letter`.

    Raises:
        KeyError: a reply to a question that is not in `answers`.
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
    """Weighted by the number of questions, through the subjects' own shares as published (it can move a rounding)."""
    n, total = 0, 0.0
    for values in subjects:
        n += len(values)
        total += sum(values) / len(values) * len(values)
    return {"num": n, "acc": round(total / n, 3) if n else 0}
