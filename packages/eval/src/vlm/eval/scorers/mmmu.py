"""MMMU: letters and open answers from replies, and accuracies by subject. Source: the published evaluators."""

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import contains
from typing import TypedDict

from vlm.eval.benchmark import Benchmark
from vlm.eval.measures.reply import answer_text, ends, says
from vlm.eval.measures.rows import Answers, Metric, ResultRow, plain
from vlm.eval.measures.short import same_answer
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.choice import option_post_process, read_letter
from vlm.eval.scorers.scorer import Scorer, by_fields, takes

RANDOM = "__RANDOM__"
"""In the place of the published parser's random choice among the options."""

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


def mmmu_multi_choice_parse(
    response: str, all_choices: Sequence[str], index2ans: Mapping[str, str], *, compat: Compat = "upstream"
) -> str:
    """Return the letter of the last mention: `(A)`, else ` A `, else, in more than five words, an option's text.

    Part of MMMU, but not called by its published scripts. Nothing mentioned: upstream `RANDOM`; fixed: `read_letter`,
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
    """List what a reply to an open question may say: numbers (two decimals), then texts, sorted and without repeats.

    These are the shortest tail after a cue word of each line, and every number in the tails; without a tail, those of
    the whole reply. The same in both modes (`.5` loses its point with the final periods).
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
    """Return a number to two decimals, else the text in lower case; one letter is padded: it is in too many words."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def mmmu_open_eval(gold: str | Sequence[str], response: str, *, compat: Compat = "upstream") -> bool:
    """Return whether a reference equals a number of the reply, or is inside one of its texts.

    fixed: of the reply without reasoning and markup, and a text must be whole words; or its short answer
    is a reference.
    """
    if compat == "fixed":
        if any(same_answer(response, answer) for answer in ([gold] if isinstance(gold, str) else gold)):
            return True
        response = ends(answer_text(response))
    inside = says if compat == "fixed" else contains
    answers = [part for answer in ([gold] if isinstance(gold, str) else gold) for part in _normal(answer)]
    for part in mmmu_open_parse(response):
        if isinstance(part, float):
            if part in answers:
                return True
        elif any(isinstance(answer, str) and inside(part, answer) for answer in answers):
            return True
    return False


class ReadScore(TypedDict):
    """What was read in a reply, and its score 0 or 1."""

    extracted: str
    score: int


def mmmu_item(
    response: str,
    question_type: str,
    ground_truth: str | list[str],
    options: Mapping[str, str],
    *,
    compat: Compat = "upstream",
) -> ReadScore:
    """Return what was `extracted` from a raw reply, and its `score`, 0 or 1.

    As the published scripts chain their steps: letters by `option_post_process`, all else by `mmmu_open_eval`.

    Raises:
        IndexError: upstream, for an empty reply to options (as published).
    """
    if question_type != "multiple-choice":
        return {"extracted": response.strip(), "score": int(mmmu_open_eval(ground_truth, response, compat=compat))}
    letter = option_post_process(response, options, compat=compat)
    right = letter in ground_truth if isinstance(ground_truth, list) else letter == ground_truth
    return {"extracted": letter, "score": int(right)}


def mmmu(benchmark: Benchmark, rows: Sequence[ResultRow], compat: Compat) -> list[Metric]:
    """Return the accuracy over all questions, per domain, and per subject (the groups)."""
    overall, *subjects = plain(rows, compat)
    domains = {name: [row for row in rows if row["group"] in names.split()] for name, names in DOMAINS.items()}
    return [overall, *[Answers(part, compat).mean(f"accuracy/{name}") for name, part in domains.items()], *subjects]


SCORERS = {
    "mmmu_item": Scorer(
        mmmu_item,
        takes("response", "ground_truth", question_type="question_type", options="options"),
        by_fields("score", "extracted"),
    ),
    "mmmu_multi_choice_parse": Scorer(mmmu_multi_choice_parse),
    "mmmu_open_eval": Scorer(mmmu_open_eval),
    "mmmu_open_parse": Scorer(mmmu_open_parse),
}
AGGREGATES = {"mmmu": mmmu}
