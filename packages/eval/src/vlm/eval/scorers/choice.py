"""Letters of options from free replies: MMMU, ScienceQA, MMVP, SEED-Bench, RealWorldQA, Video-MME.

The published rules read a reply in four ways that disagree. In `fixed` mode all of them use one rule, `read_letter`.
"""

from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from vlm.eval.measures.letters import read_label
from vlm.eval.measures.short import same_answer
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.scorer import Scorer, as_answer, takes

FOUR = dict.fromkeys("ABCD", "")
"""Options whose texts are unknown."""


def read_letter(reply: str, options: Mapping[str, str]) -> str:
    """Read a reply to options (letter -> text) as one of their letters, or "". Source: ours.

    >>> [read_letter(reply, {"A": "cat", "B": "dog"}) for reply in ("(b)", "So A", "a dog", "Because", "cat or dog")]
    ['B', 'A', 'B', '', '']
    """
    size = max((ascii_uppercase.index(letter) + 1 for letter in options), default=0)
    found = read_label(reply, [str(options.get(letter, "")) for letter in ascii_uppercase[:size]])
    return found if found in options else ""


def option_post_process(pred: str, option: Mapping[str, str], *, compat: Compat = "upstream") -> str:
    """Read a reply as the letter of an option (letter -> text). Source: the published evaluators.

    upstream: a single character is kept; else a first character that is a letter of an option wins (`Because` is B);
    else the first option whose text is inside (`100` contains `10`); else the reply is returned. fixed: `read_letter`.

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
    """Return 1 iff `option_post_process` gives the letter of option number `answer`; at most five options.

    Raises:
        IndexError: upstream, for an empty reply or a sixth option (as published).
    """
    letters = "ABCDE"
    options = {letters[i]: choice for i, choice in enumerate(choices)}
    return int(option_post_process(pred, options, compat=compat) == letters[answer])


def seed_letter(prediction: str, *, compat: Compat = "upstream") -> str:
    """Read a reply to SEED-Bench as a letter. upstream: its first character. fixed: `read_letter`.

    Raises:
        IndexError: upstream, for an empty reply (as published).
    """
    if compat == "fixed":
        return read_letter(prediction, FOUR)
    return prediction if len(prediction) == 1 else prediction[0]


_ARTICLED = ("answer", "correct answer", "best answer", "correct option", "best option", "choice", "correct choice")
PHRASES = (
    *(f"{the}{noun} is" for noun in _ARTICLED for the in ("the ", "")),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
"""What announces an answer. The first occurrence of each counts, so that longer forms find later letters."""


def mcq_letter_extract(response: str | None, *, choices: Sequence[str] = "ABCD", compat: Compat = "upstream") -> str:
    """Return the letter that a reply chooses, or "". Source: lmms-eval's shared extractor.

    upstream: the strongest kind of mention wins, then the last of that kind: at the start, at the end, after a phrase
    of `PHRASES`, `(A)`, `A.`, `A:`, `A)`, `A `, and without any of these, anywhere (`Because` is B).
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
    """Return 1 iff the letter of the reply, or its text without case and final periods, is the answer.

    Letters are read by `mcq_letter_extract`. fixed: texts by `same_answer`.
    Source: lmms-eval.
    """
    gold = answer.strip()
    if gold.upper() in tuple("ABCD"):
        return float(mcq_letter_extract(pred, compat=compat) == gold.upper())
    if compat == "fixed":
        return float(same_answer(pred, gold))
    return float(pred.lower().strip().rstrip(".") == gold.lower())


SCORERS = {
    "mcq_letter_extract": Scorer(mcq_letter_extract, takes("response"), as_answer),
    "option_post_process": Scorer(option_post_process, takes("pred", option="options"), as_answer),
    "realworldqa_lmms": Scorer(realworldqa_lmms, takes("pred", "answer")),
    "scienceqa_match": Scorer(scienceqa_match),
    "seed_letter": Scorer(seed_letter, takes("prediction"), as_answer),
}
