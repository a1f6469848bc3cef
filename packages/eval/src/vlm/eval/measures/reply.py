r"""What a reply says when a person reads it: no reasoning, no markup, and the letters that stand for options.

    answer_text("<think>A? No.</think>**B**")                         # "B"
    letters_alone("A picture of it. So option A.", {"A", "B"})        # [Mention(31, "A")]: the article is no letter

The corrected (`fixed`) rules of scorers and the reading of judges use it; published rules never do. Source: ours.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

OPENED = re.compile(
    r"<(?:think|thinking|thought|reasoning|seed:think)>|◁think▷|\[THINK\]|<\|begin_of_thought\|>|<\|START_THINKING\|>"
    r"|<\|channel\|>(?:analysis|commentary)[^<]{0,40}<\|message\|>",
    re.IGNORECASE,
)
CLOSED = re.compile(
    r"</(?:think|thinking|thought|reasoning|seed:think)>|◁/think▷|\[/THINK\]|<\|end_of_thought\|>|<\|END_THINKING\|>"
    r"|<\|channel\|>final[^<]{0,40}<\|message\|>",
    re.IGNORECASE,
)
"""Marks around the reasoning of models that think before they answer."""

ANSWER_TAG = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.IGNORECASE | re.DOTALL)
SPECIAL = re.compile(r"<\|[a-z_]{1,30}\|>|<(?:/s|eos|end_of_turn)>", re.IGNORECASE)
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mathsf|operatorname)\s*\{([^{}]*)\}")
LATEX = re.compile(r"\\[()\[\]]|\\[,;! ]|(?<!\\)\$(?=[^$\n]*\$)|(?<=\S)\$(?!\d)|\\(?=[%$#&])")
BOLD = re.compile(r"(\*{1,3}|_{2,3}|`{1,3})(?=\S)(.+?)(?<=\S)\1", re.DOTALL)
CLAIMED = re.compile(
    r"(?<!is the )(?<!is my )(?<!if )(?<!whether )\banswer(?: is\b|\s*[:：])|答案(?:是|为|[:：])", re.IGNORECASE
)
FULL_WIDTH = {**{code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}, 0x3000: 0x20}
"""Full-width ASCII and the ideographic space -> their ordinary forms."""


def after_reasoning(reply: str) -> str | None:
    """Return what follows the reasoning of a reply, the whole reply without any; None when the reasoning has no end."""
    opened = max((match.end() for match in OPENED.finditer(reply)), default=-1)
    closed = max((match.end() for match in CLOSED.finditer(reply)), default=-1)
    return None if opened > closed else reply[max(closed, 0) :]


def why_unanswered(reply: str | None, finished: bool = True) -> str:
    """Return why a reply holds no answer, "" when it holds one; an empty reply that the model ended is one.

    Args:
        reply: The text; None when the model gave none.
        finished: Whether the model ended it within the budget.
    """
    if reply is None:
        return "the reply has no text"
    answer = after_reasoning(reply)
    if answer is None:
        return "the reasoning has no end, and no answer follows"
    if not answer.strip() and answer != reply:
        return "no answer follows the reasoning"
    return "" if reply.strip() or finished else "the token budget ended before the first word of an answer"


def ends(text: str, most: int = 3000) -> str:
    """Return a long text as its beginning and its end: an answer stands at one of them, and the work stays small."""
    return text if len(text) <= most else f"{text[: most // 2]}\n{text[-most // 2 :]}"


def answer_text(reply: str) -> str:
    r"""Return the answer without reasoning, tags, LaTeX and Markdown; of `\boxed{...}` the content of the last one.

    >>> [answer_text(reply) for reply in ("So $x = 3$.", r"thus \boxed{\text{B}} holds", "<think>no</think> **Yes**")]
    ['So x = 3.', 'B', 'Yes']
    """
    text = SPECIAL.sub("", after_reasoning(reply) or "").translate(FULL_WIDTH)
    tagged = [part for part in ANSWER_TAG.findall(text) if part.strip()]
    text = str(tagged[-1]) if tagged else text
    boxed = _last_box(text)
    text = text if boxed is None else boxed
    for _ in range(3):  # wrappers in wrappers
        text = WRAPPED.sub(r"\1", text)
    text = BOLD.sub(r"\2", BOLD.sub(r"\2", LATEX.sub("", text)))
    return text.strip()


def claim(text: str) -> str:
    """Return what a text announces as its answer (`the answer is`, `Answer:`), the last one, else the whole text."""
    claimed = list(CLAIMED.finditer(text))
    return (text[claimed[-1].end() :].strip(" :：") if claimed else "") or text


def says(text: str, phrase: str) -> bool:
    """Tell whether a text, or what it announces as the answer, claims a phrase: whole words, no `not` or `or` there."""
    word = re.escape(phrase)
    text = claim(text)
    found = list(re.finditer(rf"(?<!\w)(?<!\d\.){word}(?!\w)(?!\.\d)", text))
    denied = re.compile(
        rf"(?:\bnot|n't|\bnever|\bnor|\bneither|\brather than|\binstead of)\s+"
        rf"(?:(?:say|read|show|contain|mention|be)\s+)?(?:an?\s+|the\s+)?{word}(?!\w)|(?<!\w){word}\s+or\s|\bor\s+{word}(?!\w)"
    )
    return len(found) > len(denied.findall(text))


def _last_box(text: str) -> str | None:
    """Return the content of the last box whose braces close."""
    for match in reversed(list(BOX.finditer(text))[-20:]):
        depth = 1
        for place in range(match.end(), min(len(text), match.end() + 2000)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[match.end() : place] or None
    return None


# letters -------------------------------------------------------------------------------------------------------------


class Mention(NamedTuple):
    """A letter of an option that stands alone, and where."""

    place: int
    letter: str


ALONE = re.compile(r"(?<![A-Za-z0-9_'’°\\])(?<![A-Z]\.)(?<![Nn]/)([A-Z]{1,2})(?![A-Za-z0-9_'’])(?!-\w)(?!\.[A-Z]\b)")
SENTENCE_START = re.compile(r"(?:^|[.!?:;。！？：；\n\"“(\[-])\s*$")
NO_NOUN = re.compile(
    r"\s+(?:is|was|are|has|had|does|did|do|would|will|can|could|should|seems?|looks?|appears?|fits?|matches|because|"
    r"since|as|due|for|and|or|but|over|nor|not|than|then|so|which|who|if|when|while|where|from|in|on|at|by|with|"
    r"without|to|instead|rather|describes|shows|makes|says|states|represents|corresponds|best|correctly|here|only|"
    r"really|cannot|can't|isn't|doesn't|must|may|might|needs?|remains|wins|refers|means|contains|has|holds|"
    r"alone|too|also|either|both|it|this|that|the|a|an)\b"
)
NAMED = re.compile(r"(?:option|choice|letter|answer|select|choose|pick|选项|选择|选)\s*[:：(]?\s*$", re.IGNORECASE)
NAME_BEFORE = re.compile(
    r"\b(?:vitamins?|hepatitis|influenza|flu|plan|type|class|grade|schedule|factor|blood group|malcolm|formula"
    r"|generation|gate|terminal|exhibit|appendix|serie|middle|key of|programming in|mrs?\.|dr\.)\s+$",
    re.IGNORECASE,
)
NAME_AFTER = re.compile(r"[ -](?:major|minor|sharp|flat|programming|compiler|cells?|batter(?:y|ies)|clef)\b")
"""What makes a letter a part of a name: Vitamin C, Plan B, C major."""
BARE_IS = re.compile(r"(?:\b(?:is|be|was|it's)|[:=])\s*$", re.IGNORECASE)


def letters_alone(text: str, labels: Collection[str]) -> list[Mention]:
    """List the capital labels of options that stand alone, in order: no article A, pronoun I, or name (Vitamin C)."""
    found = []
    for match in ALONE.finditer(text):
        letter, before, after = (
            match[1],
            text[max(0, match.start() - 20) : match.start()],
            text[match.end() : match.end() + 30],
        )
        named = NAME_BEFORE.search(before) or NAME_AFTER.match(after)
        if letter in labels and not named and not (letter in ("A", "I") and _is_word(letter, before, after)):
            found.append(Mention(match.start(), letter))
    return found


def _is_word(letter: str, before: str, after: str) -> bool:
    """Tell whether an A is the article, an I the pronoun: by this occurrence alone."""
    if NAMED.search(before[-20:]):
        return False
    if letter == "I":
        return re.match(r"['’]|\s+(?!is\b|was\b)[a-z]", after) is not None
    if not re.match(r"\s+(?:[a-z0-9]|[B-HJ-Z]\s+[a-z])", after) or NO_NOUN.match(after):
        return False
    return bool(SENTENCE_START.search(before[-8:]) or BARE_IS.search(before[-8:]))
